"""Tests of python -m gshard_tf.decode, started as its users start it."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from gshard_tf.decode import bleu
from gshard_tf.decode import translate
from gshard_tf.input import corpus as corpora
from gshard_tf.runtime import checkpoint
from tests import lowered

pytestmark = pytest.mark.slow

MESH = (2, 1)
BEAM = 2
STEP, SEED = 12, 3
LANGUAGES = ('da', 'es', 'fi')
EACH = 8  # sentences; 24 are more than the rows of a step
# Runs the module, and fails if that has imported what an artifact does without.
DRIVER = """
import runpy, sys

try:
  runpy.run_module('gshard_tf.decode', run_name='__main__', alter_sys=True)
except SystemExit as end:
  imported = {'tensorflow', 'lingvo'} & {name.partition('.')[0] for name in sys.modules}
  sys.exit(f'imported {imported}' if imported else end.code)
"""


def decode(*arguments, stdin=b''):
  """Runs the command as on a machine with one CPU and no settings."""
  environment = {name: value for name, value in os.environ.items()
                 if name not in ('XLA_FLAGS', 'JAX_NUM_CPU_DEVICES')}
  return subprocess.run(
      [sys.executable, '-c', DRIVER, *map(str, arguments)], cwd=lowered.ROOT, input=stdin,
      env=environment | {'JAX_PLATFORMS': 'cpu', 'COLUMNS': '120'}, capture_output=True,
      timeout=300, check=False)


@pytest.fixture(name='corpus_file', scope='module')
def _corpus_file(tmp_path_factory):
  """The shortest pairs of three languages, none longer than the model reads."""
  lines = (lowered.DATA / 'dev.tsv').read_text(encoding='utf-8').splitlines(keepends=True)
  path = tmp_path_factory.mktemp('corpus') / 'test.tsv'
  shortest = sorted(lines, key=lambda line: len(line.split('\t')[1]))
  path.write_text(''.join(
      line for code in LANGUAGES
      for line in [x for x in shortest if x.startswith(f'{code}\t')][:EACH]), encoding='utf-8')
  return path


@pytest.fixture(name='logdir', scope='module')
def _logdir(tmp_path_factory, corpus_file):
  """A logdir as the trainer leaves it: the artifact, and a checkpoint."""
  logdir = tmp_path_factory.mktemp('logdir')
  artifact = dataclasses.replace(lowered.artifact(MESH), inputs={'Test': str(corpus_file)})
  artifact.save(str(logdir / 'artifact'))
  program = lowered.program(MESH)
  zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), program.state_shapes)
  state = jax.device_put(zeros | {'theta': lowered.talkative()}, program.state_shardings)
  checkpoints = checkpoint.Checkpoints(str(logdir / 'checkpoints'), [])
  checkpoints.save(STEP, state, {'position': 36, 'seed': SEED})
  checkpoints.close()
  return logdir


def translations(sources):
  """What this process makes of the same weights."""
  return translate.Translator(lowered.program(MESH), BEAM)(lowered.talkative(), list(sources))[0]


def test_scores_a_held_out_split(logdir, corpus_file):
  run = decode(f'--logdir={logdir}', f'--beam={BEAM}', '--json')
  assert run.returncode == 0, run.stderr.decode()
  assert not run.stderr
  out = run.stdout.decode().splitlines()
  result = json.loads(out[-1])
  assert result.keys() >= {'languages', 'average_bleu', 'average_chrf', 'signature'}
  assert result['languages'].keys() == set(LANGUAGES)
  corpus = corpora.read_corpus(corpus_file)
  hypotheses = translations(corpus.sources)
  scores = bleu.corpus_scores(
      hypotheses, list(corpus.targets), [corpus.languages[i] for i in corpus.language])
  for language in LANGUAGES:
    want = scores.languages[language].overall
    got = result['languages'][language]
    assert got.keys() >= {'bleu', 'chrf', 'sentences'}
    assert (got['bleu'], got['chrf'], got['sentences']) == (want.bleu, want.chrf, EACH)
  assert result['average_bleu'] == scores.average.overall.bleu
  assert result['average_chrf'] == scores.average.overall.chrf > 0
  assert result['signature'] == scores.signature

  assert out[0] == f'{lowered.NAME}, step {STEP}, {corpus_file}, beam {BEAM}'
  for language in LANGUAGES:  # a row of the table
    scores_of = scores.languages[language].overall
    row, = [line.split() for line in out if line.split()[:2] == [language, str(EACH)]]
    assert row[2] == f'{scores_of.bleu:.1f}' and row[-1] == f'{scores_of.chrf:.1f}'
  assert sum(line.startswith('translation ') for line in out) == 6


def test_translates_standard_input_and_writes_no_scores(logdir, corpus_file):
  sources = list(corpora.read_corpus(corpus_file).sources)[:5]
  sources.insert(2, '')  # an empty line is a sentence too: lines stay aligned
  long = ' '.join(['Wort'] * 60)
  run = decode(f'--logdir={logdir}', '--input=-', '--lang=de', f'--beam={BEAM}',
               stdin='\n'.join([*sources, long]).encode())
  assert run.returncode == 0, run.stderr.decode()
  assert run.stdout.decode().splitlines() == translations([*sources, long])
  cut, = run.stderr.decode().splitlines()
  assert cut.startswith('1 of 7 sentences ') and 'cut' in cut


@pytest.fixture(name='unreadable')
def _unreadable(tmp_path):
  path = tmp_path / 'sentences.txt'
  path.write_bytes(b'caf\xe9\n')
  return path


def assert_refused(run, *words):
  assert run.returncode == 2, run.stderr.decode()
  assert not run.stdout
  line, = run.stderr.decode().splitlines()
  assert line.startswith('decode: ')
  assert all(word in line for word in words), line


def test_no_model(tmp_path):
  assert_refused(decode(f'--logdir={tmp_path}'), f'--logdir={tmp_path}', 'gshard_tf.trainer')


def test_no_checkpoint_yet(tmp_path, logdir):
  os.symlink(logdir / 'artifact', tmp_path / 'artifact')
  assert_refused(decode(f'--logdir={tmp_path}', '--beam=2'), 'no checkpoint', str(tmp_path))


def test_no_such_data_set(logdir):
  assert_refused(decode(f'--logdir={logdir}', '--dataset=Dev'), 'no data set Dev', 'Test')


def test_a_beam_that_does_not_fit(logdir):
  assert_refused(decode(f'--logdir={logdir}', '--beam=3'), '--beam=3', 'choose a divisor of 8')


def test_input_that_cannot_be_read(logdir, tmp_path, unreadable):
  missing = tmp_path / 'none.txt'
  for path, reason in (missing, 'No such'), (unreadable, 'utf-8'):
    assert_refused(decode(f'--logdir={logdir}', f'--input={path}'), f'--input={path}', reason)


def test_unknown_flags():
  assert_refused(decode('--logdir=x', '--bean=4'), '--bean=4', '--help')
  assert_refused(decode(), '--logdir', '--help')
