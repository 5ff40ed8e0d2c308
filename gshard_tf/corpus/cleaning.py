"""Turns a message and its translation into a sentence pair, or says why they make none."""

import re
import unicodedata

from gshard_tf.corpus import languages
from gshard_tf.corpus import markup

MAX_WORDS = 120

# Translations are this much shorter or longer than the English, in characters. What lies beyond is mostly
# a free rewording or a translation of an older English text.
_RATIOS = (0.4, 2.8)
_CJK_RATIOS = (0.14, 1.3)
_CJK = ('zh-Hans', 'zh-Hant', 'ja', 'ja-Hira', 'ko')

_MARKUP = re.compile(r'</?\w|&#?\w+;|[|^]')
_WIKI = re.compile(r'\{\{[^{}]*[|:#][^{}]*\}\}|\[\[|\]\]|~~~|(?<!\w):\w+(?::\w+)*:`')
_IDENTIFIER = re.compile(
    r'https?:|www\.|(?<!\w)--?[a-z]\w*|\w::\w|\w\(\)|[a-z]\.[a-z]{2,}\b|\b[a-z]+[A-Z]\w*'
    r'|(?<!\w)[~.]?/\w+[/.]\w|\w+\\\w|[=<>`\\@_\[\]{}]')
_TYPOGRAPHY = str.maketrans({'’': "'", '‘': "'", '“': '"', '”': '"', '…': '...', '–': '-', '—': '-'})


class Rejected(Exception):
  """A message that makes no sentence pair; the text of the exception is the reason, for counting."""


def words(text: str) -> list[str]:
  """Splits a text into its words, case folded: runs of letters, apostrophes inside them kept."""
  return re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)*", text.casefold())


def _digits(text: str) -> list[int]:
  """Returns the decimal digits of a text in order of size, whatever script they are in."""
  bare = markup.PLACEHOLDER.sub(' ', text)
  return sorted(unicodedata.digit(c) for c in bare if c.isdecimal())


def _kept_share(source: str, english: str) -> float:
  """Returns the share of the English words that the source still has."""
  kept = set(words(source))
  english_words = words(english)
  return sum(word in kept for word in english_words) / max(len(english_words), 1)


def _ratio_is_plausible(source: str, english: str, language: str) -> bool:
  low, high = _CJK_RATIOS if language in _CJK else _RATIOS
  return low <= len(source) / len(english) <= high


def _asks_alike(source: str, english: str) -> bool:
  """Whether English asks where the source does; the reverse differs too much between languages."""
  return not source.endswith(('?', '？', '؟')) or '?' in english


def _script_is_right(source: str, language: str) -> bool:
  # Texts in other scripts keep foreign names in Latin letters.
  needed = 0.9 if 'LATIN' in languages.scripts(language) else 0.4
  return languages.script_share(markup.PLACEHOLDER.sub(' ', source), language) >= needed


# Tried in order on the plain texts; the first that does not hold names the reason.
_RULES = (
    ('no letters', lambda s, e, l: bool(words(s) and words(e))),
    ('markup', lambda s, e, l: not _MARKUP.search(s + ' ' + e)),
    ('wiki', lambda s, e, l: not _WIKI.search(s + ' ' + e)),
    ('too long', lambda s, e, l: max(len(s.split()), len(e.split())) <= MAX_WORDS),
    ('placeholders', lambda s, e, l: markup.count_placeholders(s) == markup.count_placeholders(e)),
    ('identifier', lambda s, e, l: not _IDENTIFIER.search(markup.PLACEHOLDER.sub(' ', e))),
    ('untranslated', lambda s, e, l: _kept_share(s, e) <= 0.5),
    ('script', lambda s, e, l: _script_is_right(s, l)),
    ('English not ASCII', lambda s, e, l: e.isascii()),
    ('numbers', lambda s, e, l: _digits(s) == _digits(e)),
    ('length ratio', lambda s, e, l: _ratio_is_plausible(s, e, l)),
    ('question', lambda s, e, l: _asks_alike(s, e)),
)


def clean_pair(source: str, english: str, language: str, accelerator: str = '') -> tuple[str, str]:
  """Cleans both sides of a translated message.

  Args:
    source: the translation.
    english: the English message.
    language: normalised tag of the translation's language.
    accelerator: the mark before the key of a menu entry in this catalogue, '' where it has none.

  Returns:
    The source and the English sentence as plain text; cleaning them again changes nothing.

  Raises:
    Rejected: when they are no sentence pair; its text is one of `REASONS`.
  """
  try:
    sides = [markup.keep_other_branch(side) for side in (source, english)]
  except ValueError as error:
    raise Rejected('plural') from error
  if markup.count_tags(sides[0]) != markup.count_tags(sides[1]):
    raise Rejected('tags')
  source, english = (markup.plain_text(markup.strip_accelerator(side, accelerator))
                     for side in markup.strip_context(*sides))
  english = english.translate(_TYPOGRAPHY)
  for reason, holds in _RULES:
    if not holds(source, english, language):
      raise Rejected(reason)
  return source, english


REASONS = ('plural', 'tags') + tuple(reason for reason, _ in _RULES)
