"""Reports as they appear in an 80-column log."""

import io

from hypothesis import given, settings, strategies as st
from rich.cells import cell_len
from rich.console import Console

from gshard_tf.decode.bleu import corpus_scores
from gshard_tf.decode.report import Example, print_examples, print_scores, spread_over_languages

REFERENCES = ['The cat sat quietly on the mat.', 'Good morning!', 'We will meet again in the old town.']
HYPOTHESES = ['The cat sat quietly on a mat.', 'Good day!', 'We will meet again in the old city.']
LANGUAGES = ['fr', 'de', 'fr']


def printed(report, *arguments):
  """What a report prints where there is no terminal, every line within 80 cells."""
  log = io.StringIO()
  report(*arguments, Console(file=log, width=80))
  text = log.getvalue()
  assert all(cell_len(line) <= 80 for line in text.splitlines())
  assert '\x1b' not in text
  return text


def table_rows(text):
  return [line.split() for line in text.splitlines() if line.strip()]


def test_scores_of_languages_then_averages_then_signatures():
  scores = corpus_scores(HYPOTHESES, REFERENCES, LANGUAGES, sources=REFERENCES)
  rows = table_rows(printed(print_scores, scores))
  german, french = scores.languages['de'].overall, scores.languages['fr'].overall
  expected = [
      ['de', '1', f'{german.bleu:.1f}', f'{german.copy_bleu:.1f}', f'{german.chrf:.1f}'],
      ['fr', '2', f'{french.bleu:.1f}', '100.0', f'{french.chrf:.1f}']]
  assert rows[0] == ['Language', 'Sentences', 'BLEU', 'BLEU', 'of', 'copying', 'chrF']
  assert [row for row in rows if row[0] in ('de', 'fr')] == expected
  average = rows.index(next(row for row in rows if row[0] == 'average'))
  assert average > rows.index(expected[1])
  assert rows[average][1:3] == ['3', f'{(german.bleu + french.bleu) / 2:.1f}']
  assert rows[-2:] == [['BLEU', scores.signature], ['chrF', scores.chrf_signature]]


def test_without_sources_there_is_no_score_of_copying():
  rows = table_rows(printed(print_scores, corpus_scores(HYPOTHESES, REFERENCES, LANGUAGES)))
  assert {row[3] for row in rows if row[0] in ('de', 'fr')} == {'-'}


def test_examples_are_printed_whole_and_as_they_are():
  long_word, wide = 'x' * 200, '日本語' * 40
  text = printed(print_examples, [
      Example('de', long_word, 'a [bold]b[/bold] c', ''), Example('ja', wide, '', 'Good :smile: morning!')])
  folded = ''.join(text.split())
  for part in (long_word, wide, 'a[bold]b[/bold]c', 'Good:smile:morning!'):
    assert part in folded
  assert [row[0] for row in table_rows(text) if row[0] in ('de', 'ja', 'translation', 'reference')] == [
      'de', 'translation', 'reference', 'ja', 'translation', 'reference']


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.lists(st.sampled_from('abcdefg'), max_size=30), st.integers(0, 40))
def test_examples_are_spread_over_languages(languages, count):
  picked = spread_over_languages(languages, count)
  assert len(set(picked)) == len(picked) <= count
  taken = {name: sum(languages[i] == name for i in picked) for name in languages}
  left = {name: languages.count(name) - taken[name] for name in taken}
  # A language with sentences to spare is never more than one behind another.
  assert all(taken[a] >= taken[b] - 1 for a in taken if left[a] for b in taken)


def test_fewer_examples_than_languages_are_spread_over_the_alphabet():
  languages = list('abcdefghij')
  assert [languages[i] for i in spread_over_languages(languages, 2)] == ['c', 'h']
  assert spread_over_languages(['de'] * 9, 3) == [1, 4, 7]
