"""Tests of tools.train_vocabulary."""

import collections
import re

import numpy as np
import pytest

from gshard_tf.input import corpus as corpora
from gshard_tf.input import mixing
from gshard_tf.input import tokenizer as tokenizers
from tests.input import languages
from tools import train_vocabulary

pytestmark = pytest.mark.slow

SIZES = ['--source_size=360', '--target_size=320']


@pytest.fixture(name='path', scope='module')
def _path(tmp_path_factory):
  path = tmp_path_factory.mktemp('corpus') / 'train.tsv'
  path.write_text(languages.corpus_text(), encoding='utf-8')
  return path


def test_two_runs_write_the_same_bytes(path, tmp_path, capsys):
  models = []
  for run in ('first', 'second'):
    output = tmp_path / run
    assert train_vocabulary.main(
        [f'--corpus={path}', f'--output={output}', *SIZES]) == 0
    models.append([(output / f'{side}.model').read_bytes()
                   for side in ('source', 'target')])
  assert models[0] == models[1]
  assert models[0][0] != models[0][1]
  assert tokenizers.Tokenizer(output / 'source.model').size == 360
  assert tokenizers.Tokenizer(output / 'target.model').size == 320
  assert 'source.model: 360 pieces from 600 sentence pairs in 3 languages' in (
      capsys.readouterr().out)


def test_the_source_sentences_have_the_shares_of_the_temperature(path):
  corpus = corpora.read_corpus(path)
  language_of = {source: code for code, pairs in corpus.by_language().items()
                 for source, _ in pairs}
  sentences = train_vocabulary.source_sentences(corpus, temperature=5)
  shares = collections.Counter(language_of[s] for s in sentences)
  # Each count is rounded to a whole sentence, of the 400 of the largest or more.
  np.testing.assert_allclose(
      [shares[code] / len(sentences) for code in corpus.languages],
      mixing.language_weights(corpus.counts, 5), atol=2 / len(sentences))
  assert set(sentences) == set(corpus.sources)
  assert shares['aa'] == languages.LINES['aa']


def run(capsys, *args):
  """Returns the exit status and the standard error."""
  try:
    status = train_vocabulary.main(list(args))
  except SystemExit as stop:
    status = stop.code
  return status, capsys.readouterr().err


def test_nothing_is_overwritten_unless_forced(path, tmp_path, capsys):
  (tmp_path / 'target.model').write_bytes(b'mine')
  args = [f'--corpus={path}', f'--output={tmp_path}', *SIZES]
  status, error = run(capsys, *args)
  assert status == 2
  assert 'has target.model already; give --force' in error
  assert (tmp_path / 'target.model').read_bytes() == b'mine'
  assert not (tmp_path / 'source.model').exists()
  assert run(capsys, *args, '--force') == (0, '')
  assert tokenizers.Tokenizer(tmp_path / 'target.model').size == 320


@pytest.mark.parametrize('args, message', [
    (['--source_size=100000'], r'--source_size: 100000 pieces are more than the \d+'),
    (['--source_size=360', '--target_size=270'], '--target_size: 270 pieces are fewer'),
    (['--source_size=many'], "invalid int value: 'many'"),
    (['--temperature=0'], 'temperature is 0.0, not > 0'),
    (['--corpus=nowhere.tsv'], 'nowhere.tsv: no such corpus file'),
    (['--sizes=3'], 'unrecognized arguments: --sizes=3'),
])
def test_a_mistake_is_one_line_and_exit_2(path, tmp_path, capsys, args, message):
  status, error = run(capsys, f'--corpus={path}', f'--output={tmp_path}', *args)
  assert status == 2
  assert error.count('\n') == 1
  assert re.search(message, error)
  assert not list(tmp_path.iterdir())
