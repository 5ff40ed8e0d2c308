"""Reads a corpus: one sentence pair a line, `language<TAB>source<TAB>english`.

  corpus = read_corpus('data/train.tsv')
  corpus.languages               # ('de', 'fr', ...)
  corpus.by_language()['de'][0]  # ('Guten Morgen.', 'Good morning.')

The file is UTF-8 without a header. A bad line is reported and skipped; a file
with more than 1% of bad lines is refused.
"""

import dataclasses
import logging
import os
from typing import NamedTuple

import numpy as np

MAX_BAD_PERCENT = 1
# More than these are counted, not named, in a message or in the log; the report
# keeps all of them.
_FAULTS_IN_MESSAGE = 3
_FAULTS_IN_LOG = 20

_logger = logging.getLogger(__name__)


class CorpusError(ValueError):
  """A corpus file that cannot be used; the message is one line for the user."""


class Fault(NamedTuple):
  """A line that was skipped."""
  line: int  # Counted from 1.
  reason: str

  def __str__(self):
    return f'line {self.line} ({self.reason})'


class Report(NamedTuple):
  """What reading a file met."""
  path: str
  lines: int
  faults: tuple[Fault, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
  """Sentence pairs in the order of the file.

  Attributes:
    languages: the language codes, sorted.
    language: <int32>[N], index into `languages` of each pair.
    sources: N source sentences.
    targets: N English sentences.
    report: the `Report` of the file they come from.
  """
  languages: tuple[str, ...]
  language: np.ndarray
  sources: list[str]
  targets: list[str]
  report: Report

  def __len__(self):
    return len(self.sources)

  @property
  def counts(self):
    """<int64>[L], the number of pairs of each language."""
    return np.bincount(self.language, minlength=len(self.languages))

  def by_language(self):
    """Returns {language: [(source, english), ...]}, in sorted order."""
    pairs = {code: [] for code in self.languages}
    for language, source, target in zip(self.language, self.sources,
                                        self.targets):
      pairs[self.languages[language]].append((source, target))
    return pairs

  def select(self, languages):
    """The part of the corpus in some of its languages.

    Args:
      languages: language codes, each of this corpus, in any order.

    Returns:
      A `Corpus` of the same report.

    Raises:
      CorpusError: a language has no sentence here.
    """
    missing = sorted(set(languages) - set(self.languages))
    if missing or not languages:
      raise CorpusError(
          f'{self.report.path} has no sentence in {", ".join(missing) or "[]"}; '
          f'choose languages among {", ".join(self.languages)}')
    wanted = {self.languages.index(code) for code in languages}
    kept = [i for i, language in enumerate(self.language) if language in wanted]
    return _corpus([(self.languages[self.language[i]], self.sources[i],
                     self.targets[i]) for i in kept], self.report)


def read_corpus(path, languages=None):
  """Reads a corpus file.

  Args:
    path: the file; a relative one starts at the current directory.
    languages: the language codes that a line may have, or None for any.

  Returns:
    A `Corpus` of at least one sentence pair.

  Raises:
    CorpusError: no such file, more than 1% of bad lines, or no good line.
  """
  if not os.path.isfile(path):
    raise CorpusError(
        f'{path}: no such corpus file; it has one sentence pair a line, '
        'language<TAB>source<TAB>english in UTF-8')
  known = None if languages is None else frozenset(languages)
  pairs, faults, number = [], [], 0
  with open(path, 'rb') as lines:
    for number, line in enumerate(lines, start=1):
      try:
        pairs.append(_parse(line, known))
      except ValueError as error:
        faults.append(Fault(number, str(error)))
  report = Report(str(path), number, tuple(faults))
  _check(report)
  return _corpus(pairs, report)


def _parse(line, known):
  """Returns (language, source, english) of a line, as bytes with its end."""
  try:
    # A byte order mark, which some editors put first, is no part of the text.
    text = line.decode('utf-8-sig')
  except UnicodeDecodeError as error:
    raise ValueError(f'not UTF-8 at byte {error.start + 1}') from error
  columns = [column.strip() for column in text.rstrip('\r\n').split('\t')]
  if len(columns) != 3:
    raise ValueError(f'{len(columns)} columns instead of 3')
  for name, column in zip(('language', 'source', 'english'), columns):
    if not column:
      raise ValueError(f'the {name} is empty')
  if known is not None and columns[0] not in known:
    raise ValueError(f'unknown language {columns[0]!r}')
  return tuple(columns)


def _check(report):
  """Logs the faults; raises CorpusError when the file cannot be used."""
  bad = len(report.faults)
  first = ', '.join(map(str, report.faults[:_FAULTS_IN_MESSAGE]))
  if bad * 100 > report.lines * MAX_BAD_PERCENT:
    raise CorpusError(
        f'{report.path}: {bad} of {report.lines} lines are bad, more than '
        f'{MAX_BAD_PERCENT}%; correct or remove them, the first: {first}')
  if not report.lines:
    raise CorpusError(f'{report.path}: 0 lines; at least 1 sentence pair is needed')
  for fault in report.faults[:_FAULTS_IN_LOG]:
    _logger.warning('%s: skipped %s', report.path, fault)
  if bad > _FAULTS_IN_LOG:
    _logger.warning('%s: skipped %d more of %d lines', report.path,
                    bad - _FAULTS_IN_LOG, report.lines)


def _corpus(pairs, report):
  """Builds a `Corpus` from (language, source, english) tuples."""
  codes, sources, targets = zip(*pairs)
  languages = tuple(sorted(set(codes)))
  index = {code: i for i, code in enumerate(languages)}
  return Corpus(
      languages=languages,
      language=np.array([index[code] for code in codes], np.int32),
      sources=list(sources),
      targets=list(targets),
      report=report)
