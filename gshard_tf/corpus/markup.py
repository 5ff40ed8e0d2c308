"""What stands in a message besides its words: placeholders, tags, plural branches, accelerators."""

import collections
import html
import re
import unicodedata

# printf, brace, Blockly (%1, #), template ({{x}}, ${x}, $1) and Scratch block ([COLOR]) placeholders.
PLACEHOLDER = re.compile(
    r'%\(\w+\)[#0+-]*[\d.]*[a-zA-Z]|%\d+\$[a-zA-Z]|%[\d.]*l?[sdifgrxuc](?![a-zA-Z])|%\d+|%\w+%'
    r'|\$?\{\{?\s*[\w.:!-]*\s*\}?\}|\$\d|\[[A-Z][A-Z0-9_]*\]|(?<!\w)#(?!\w)')

_ICU_BRANCHES = re.compile(r'\{\s*(\w+)\s*,\s*(?:plural|select|selectordinal)\s*,')
_ICU_OTHER = re.compile(r'\bother\s*\{')
_ICU_FORMAT = re.compile(r'\{\s*(\w+)\s*,[^{}]*\}')
_BRACE_TAG = re.compile(r'\{(\w+)\}(.*?)\{/\1\}')
_BLOCK_TAG = re.compile(r'</?(?:p|br|li|ul|ol|div|h\d|hr|td|tr|table)\b[^<>]*>', re.I)
_INLINE_TAG = re.compile(
    r'</?(?:a|abbr|b|bdi|bdo|big|cite|code|em|font|i|img|input|kbd|label|mark|q|s|samp|small|span|strong|sub'
    r'|sup|tt|u|var|wbr|\d+)\b[^<>]*>', re.I)
_MARKDOWN_LINK = re.compile(r'\[([^\[\]]+)\]\([^()\s]+\)')
_MARKDOWN_MARKS = re.compile(r'(\*\*|__|``?)(?=\S)(.+?)(?<=\S)\1')
_ASIAN_ACCELERATOR = re.compile(r'\s*\([_&][A-Za-z0-9]\)')
_CONTEXT = re.compile(r'[A-Za-z][\w .-]{0,30}[|^](?=\S)')
# Zero-width and direction marks; the two joiners (200C, 200D) belong to the spelling of several languages.
_INVISIBLE = re.compile('[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]')


def _closing_brace(text: str, opening: int) -> int:
  """Returns the position of the brace that closes the one at `opening`."""
  depth = 0
  for position in range(opening, len(text)):
    depth += {'{': 1, '}': -1}.get(text[position], 0)
    if depth == 0:
      return position
  raise ValueError(f'brace {opening + 1} of {len(text)} characters is never closed; mend the message')


def keep_other_branch(text: str) -> str:
  """Replaces ICU plurals and selects by their `other` branch, and typed arguments by plain ones.

  Args:
    text: an ICU message, e.g. '{n, plural, one {# page} other {# pages}}'.

  Returns:
    The message in plain braces, e.g. '{n} pages'.

  Raises:
    ValueError: when braces do not match or a plural has no `other` branch.
  """
  # The last one first: a plural within a plural stands after it, and '#' is the number of the inner one.
  for match in reversed(list(_ICU_BRANCHES.finditer(text))):
    end = _closing_brace(text, match.start())
    other = _ICU_OTHER.search(text, match.end(), end)
    if not other:
      raise ValueError(f'the branches of "{match[1]}" lack "other"; mend the message')
    branch = text[other.end():_closing_brace(text, other.end() - 1)]
    text = text[:match.start()] + branch.replace('#', '{%s}' % match[1]) + text[end + 1:]
  return _ICU_FORMAT.sub(r'{\1}', text)


def count_tags(text: str) -> collections.Counter:
  """Counts the HTML tags of a text by kind, and those of React and of braces (`{x}...{/x}`)."""
  names = re.findall(r'<(/?\w+)', text) + re.findall(r'\{(/\w+)\}', text)
  return collections.Counter(name.lower() for name in names)


def count_placeholders(text: str) -> collections.Counter:
  """Counts the placeholders of a text, each spelled without spaces."""
  return collections.Counter(re.sub(r'\s', '', p) for p in PLACEHOLDER.findall(text))


def strip_accelerator(text: str, mark: str) -> str:
  """Removes keyboard accelerators: '_File' -> 'File', 'ファイル(_F)' -> 'ファイル'.

  Args:
    text: a menu entry.
    mark: the character that marks the key, '_' or '&'; empty for none.
  """
  if not mark:
    return text
  return re.sub(re.escape(mark) + r'(?=\w)', '', _ASIAN_ACCELERATOR.sub('', text))


def strip_context(source: str, english: str) -> tuple[str, str]:
  """Removes a leading 'context|' or 'context^', which tells translators where a text stands.

  Args:
    source: the translation; translators sometimes keep the prefix.
    english: the English message.
  """
  prefix = _CONTEXT.match(english)
  if not prefix:
    return source, english
  return source.removeprefix(prefix[0]), english[prefix.end():]


def _plainer(text: str) -> str:
  """Takes one layer of markup off a text."""
  text = _BRACE_TAG.sub(r'\2', html.unescape(text))
  text = _INLINE_TAG.sub('', _BLOCK_TAG.sub(' ', text))
  text = _MARKDOWN_MARKS.sub(r'\2', _MARKDOWN_LINK.sub(r'\1', text))
  text = re.sub(r"([%'])\1+", r'\1', _INVISIBLE.sub('', text))
  text = re.sub(r'^[\s*•#>–—-]+(?=\s)|\\[nrt]', ' ', text)
  return ' '.join(unicodedata.normalize('NFC', text).split())


def plain_text(text: str) -> str:
  """Reduces a message to its words, placeholders and punctuation.

  Args:
    text: a message with HTML entities, tags, Markdown marks, any white space.

  Returns:
    The text in NFC on one line without tags and marks.
  """
  while (plainer := _plainer(text)) != text:
    text = plainer
  return text
