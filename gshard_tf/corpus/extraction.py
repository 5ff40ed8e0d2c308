"""From a package's archive to clean sentence pairs."""

import collections
import dataclasses
import pathlib
from collections.abc import Iterator

from gshard_tf.corpus import archives
from gshard_tf.corpus import catalogues
from gshard_tf.corpus import cleaning
from gshard_tf.corpus import languages
from gshard_tf.corpus import markup
from gshard_tf.corpus import splits
from gshard_tf.corpus.sources import Source


@dataclasses.dataclass(frozen=True)
class Pair:
  """A sentence of some language, its English, the English key and the package they come from."""
  language: str
  source: str
  english: str
  key: str
  package: str


@dataclasses.dataclass(frozen=True)
class Wanted:
  """Which pairs to keep: languages (None for all), English words, with placeholders or without."""
  languages: frozenset[str] | None = None
  min_words: int = 1
  max_words: int = cleaning.MAX_WORDS
  placeholders: bool = True

  def reason_against(self, english: str) -> str:
    """Returns why an English sentence is not wanted, '' when it is."""
    if not self.placeholders and markup.PLACEHOLDER.search(english):
      return 'has placeholder'
    count = len(cleaning.words(markup.PLACEHOLDER.sub(' ', english)))
    if count < self.min_words:
      return 'too few words'
    return 'too many words' if count > self.max_words else ''


def raw_messages(source: Source, archive: pathlib.Path,
                 wanted: frozenset[str] | None = None) -> Iterator[tuple[str, str, str]]:
  """Reads the catalogues of a package.

  Args:
    source: the package's row.
    archive: its archive.
    wanted: normalised tags of the languages to read, None for all.

  Yields:
    (normalised language, translation, English message), uncleaned.
  """
  english_files, files = {}, []
  for match, data in archives.read_members(archive, source.pattern):
    language, group = languages.normalise_tag(match['language']), match.groupdict().get('group')
    if match['language'] == source.english:
      english_files[group] = data
    elif language and (wanted is None or language in wanted):
      files.append((language, group, data))
  if source.reader == 'gettext':
    pairs_of = lambda group, data: catalogues.read_gettext(data)
  else:
    read = catalogues.KEYED_READERS[source.reader]
    english = {group: read(data) for group, data in english_files.items()}
    pairs_of = lambda group, data: catalogues.pair_by_key(read(data), english.get(group, {}))
  for language, group, data in files:
    for translation, message in pairs_of(group, data):
      yield language, translation, message


def clean_pairs(source: Source, archive: pathlib.Path, wanted: Wanted,
                dropped: collections.Counter) -> Iterator[Pair]:
  """Reads a package and keeps what makes a wanted sentence pair.

  Args:
    source: the package's row.
    archive: its archive.
    wanted: which pairs to keep.
    dropped: counts, by reason, what was not kept; updated in place.

  Yields:
    Each distinct pair once.
  """
  seen = set()
  for language, translation, english in raw_messages(source, archive, wanted.languages):
    try:
      translation, english = cleaning.clean_pair(translation, english, language, source.accelerator)
    except cleaning.Rejected as rejected:
      dropped[str(rejected)] += 1
      continue
    reason = wanted.reason_against(english)
    if not reason and (language, translation, english) in seen:
      reason = 'duplicate'
    if reason:
      dropped[reason] += 1
      continue
    seen.add((language, translation, english))
    yield Pair(language, translation, english, splits.english_key(english), source.name)
