"""Tests of gshard_tf.input.corpus."""

import logging

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from gshard_tf.input import corpus as corpora

GOOD = 'de\tGuten Tag.\tGood day.\n'.encode()
FAULTS = {
    'columns': (b'de\tGuten Tag.\n', '2 columns instead of 3'),
    'more columns': (b'de\ta\tb\tc\n', '4 columns instead of 3'),
    'empty line': (b'\n', '1 columns instead of 3'),
    'encoding': (b'de\ta\xff\tb\n', 'not UTF-8 at byte 5'),
    'source': (b'de\t \tb\n', 'the source is empty'),
    'english': (b'de\ta\t\n', 'the english is empty'),
    'no language': (b'\ta\tb\n', 'the language is empty'),
    'language': (b'xx\ta\tb\n', "unknown language 'xx'"),
}
TEXT = st.text(st.characters(exclude_categories=('C', 'Z')), min_size=1)
PAIRS = st.lists(st.tuples(st.sampled_from(['de', 'fr', 'sw']), TEXT, TEXT),
                 min_size=1)


@pytest.fixture(name='path')
def _path(tmp_path):
  return tmp_path / 'corpus.tsv'


@given(pairs=PAIRS)
def test_what_is_written_is_read(tmp_path_factory, pairs):
  path = tmp_path_factory.mktemp('corpus') / 'corpus.tsv'
  path.write_text(''.join('\t'.join(pair) + '\n' for pair in pairs),
                  encoding='utf-8')
  corpus = corpora.read_corpus(path)
  read = [(corpus.languages[language], source, target) for language, source,
          target in zip(corpus.language, corpus.sources, corpus.targets)]
  assert read == pairs
  assert list(corpus.languages) == sorted({pair[0] for pair in pairs})
  assert corpus.by_language() == {
      code: [pair[1:] for pair in pairs if pair[0] == code]
      for code in corpus.languages}
  np.testing.assert_array_equal(
      corpus.counts, [len(p) for p in corpus.by_language().values()])
  assert len(corpus) == corpus.report.lines == len(pairs)
  assert not corpus.report.faults


@pytest.mark.parametrize('kind', FAULTS)
def test_a_bad_line_is_reported_and_skipped(path, kind, caplog):
  line, reason = FAULTS[kind]
  path.write_bytes(GOOD * 100 + line + GOOD * 99)
  with caplog.at_level(logging.WARNING):
    corpus = corpora.read_corpus(path, languages=['de'])
  assert corpus.report.faults == ((101, reason),)
  assert corpus.report.lines == 200
  assert len(corpus) == 199
  assert f'line 101 ({reason})' in caplog.text


def test_any_language_is_read_when_none_are_given(path):
  path.write_bytes(GOOD + FAULTS['language'][0])
  assert corpora.read_corpus(path).languages == ('de', 'xx')


def test_exactly_one_percent_of_bad_lines_passes(path):
  path.write_bytes(GOOD * 198 + b'bad\n' * 2)
  assert len(corpora.read_corpus(path).report.faults) == 2


def test_more_than_one_percent_of_bad_lines_is_refused(path):
  path.write_bytes(b'bad\n' + GOOD * 197 + FAULTS['source'][0])
  with pytest.raises(corpora.CorpusError) as error:
    corpora.read_corpus(path)
  message = str(error.value)
  assert '2 of 199 lines are bad, more than 1%' in message
  assert 'line 1 (1 columns instead of 3)' in message
  assert 'line 199 (the source is empty)' in message
  assert '\n' not in message


def test_the_report_keeps_all_faults_and_the_log_the_first(path, caplog):
  path.write_bytes(GOOD * 5000 + b'bad\n' * 30)
  with caplog.at_level(logging.WARNING):
    corpus = corpora.read_corpus(path)
  assert [fault.line for fault in corpus.report.faults] == list(range(5001, 5031))
  assert len(caplog.records) == 21
  assert 'skipped 10 more of 5030 lines' in caplog.records[-1].getMessage()


def test_windows_line_ends_and_a_byte_order_mark_are_no_text(path):
  path.write_bytes(b'\xef\xbb\xbfde\ta\tb\r\nde\tc\td\r\n')
  assert corpora.read_corpus(path).by_language() == {'de': [('a', 'b'), ('c', 'd')]}


def test_unusual_line_separators_do_not_split_a_line(path):
  path.write_text('de\tein\u2028Satz\ta\x0bsentence\n', encoding='utf-8')
  assert corpora.read_corpus(path).by_language() == {
      'de': [('ein\u2028Satz', 'a\x0bsentence')]}


@pytest.mark.parametrize('content, message', [
    (None, 'no such corpus file'), (b'', '0 lines')])
def test_a_missing_or_an_empty_file_is_refused(path, content, message):
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(corpora.CorpusError, match=message):
    corpora.read_corpus(path)


def test_select_keeps_the_order_of_the_file(path):
  path.write_text('de\ta\tA\nfr\tb\tB\nsw\tc\tC\nde\td\tD\n')
  corpus = corpora.read_corpus(path).select(['sw', 'de'])
  assert corpus.languages == ('de', 'sw')
  assert corpus.sources == ['a', 'c', 'd']
  assert corpus.targets == ['A', 'C', 'D']
  assert corpus.language.tolist() == [0, 1, 0]


def test_select_names_what_is_missing_and_what_there_is(path):
  path.write_text('de\ta\tA\nfr\tb\tB\n')
  with pytest.raises(corpora.CorpusError,
                     match='no sentence in ja; choose languages among de, fr'):
    corpora.read_corpus(path).select(['de', 'ja'])
