"""Scores and sample translations as text, for a terminal or an 80-column log."""

from typing import NamedTuple, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gshard_tf.decode.bleu import SHORT_WORDS, CorpusScores, Scores


class Example(NamedTuple):
  """A sentence to show: its language, source, translation and reference."""
  language: str
  source: str
  translation: str
  reference: str


def print_scores(scores: CorpusScores, console: Console | None = None) -> None:
  """Prints the scores of every language, their averages last, and the signatures beneath.

  Args:
    scores: of bleu.corpus_scores.
    console: where to print; None for standard output.
  """
  console = console or Console()
  table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
  table.add_column('Language')
  for heading in ('Sentences', 'BLEU', 'BLEU of copying', 'chrF'):
    table.add_column(heading, justify='right')
  for language, split in scores.languages.items():
    table.add_row(Text(language), *_cells(split.overall))
  table.add_section()
  table.add_row('average', *_cells(scores.average.overall))
  console.print(table)
  lengths = (f'under {SHORT_WORDS} words', scores.average.short), ('longer', scores.average.long)
  for name, average in lengths:
    if average is not None:
      console.print(Text(f'average, references {name}: BLEU {average.bleu:.1f}, chrF {average.chrf:.1f}, '
                         f'{average.sentences} sentences'))
  console.print(Text(f'BLEU {scores.signature}'))
  console.print(Text(f'chrF {scores.chrf_signature}'))


def print_examples(examples: Sequence[Example], console: Console | None = None) -> None:
  """Prints translations beneath their sources and above their references.

  Args:
    examples: what to print, for instance those of spread_over_languages.
    console: where to print; None for standard output.
  """
  console = console or Console()
  for example in examples:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow='fold')
    # Text, since a translation may hold what rich would take for markup.
    grid.add_row(Text(f'{example.language} source'), Text(example.source))
    grid.add_row('translation', Text(example.translation, style='bold'))
    grid.add_row('reference', Text(example.reference))
    console.print()
    console.print(grid)


def spread_over_languages(languages: Sequence[str], count: int) -> list[int]:
  """Picks sentences to show: as many from each language as can be, at even distances, never by quality.

  With fewer places than languages, the languages themselves are at even distances in the alphabet.

  Args:
    languages: the language of each sentence.
    count: how many to pick; a language of too few sentences gives all it has.

  Returns:
    Indices into languages, grouped by language in alphabetical order.
  """
  by_language = {language: [] for language in sorted(set(languages))}
  for index, language in enumerate(languages):
    by_language[language].append(index)
  if not by_language:
    return []
  everywhere, extra = divmod(count, len(by_language))
  favoured = set(_evenly_spaced(len(by_language), extra))
  picked = []
  for place, indices in enumerate(by_language.values()):
    share = min(len(indices), everywhere + (place in favoured))
    picked += [indices[position] for position in _evenly_spaced(len(indices), share)]
  return picked


def _evenly_spaced(length: int, count: int) -> list[int]:
  """`count` distinct positions below `length`, the middles of as many equal parts."""
  return [(2 * part + 1) * length // (2 * count) for part in range(count)]


def _cells(scores: Scores) -> list[str]:
  copy_bleu = '-' if scores.copy_bleu is None else f'{scores.copy_bleu:.1f}'
  return [str(scores.sentences), f'{scores.bleu:.1f}', copy_bleu, f'{scores.chrf:.1f}']
