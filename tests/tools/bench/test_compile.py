"""The benchmark of compiling, at sizes that take seconds."""

import argparse

import pytest

from gshard_tf.params import translation
from tools.bench import compile as bench
from tools.bench import timing

pytestmark = pytest.mark.slow


def arguments(*given):
  parser = argparse.ArgumentParser()
  bench.add_arguments(parser)
  return parser.parse_args(given)


@pytest.fixture(name='small')
def _small(monkeypatch):
  for name, size in dict(MODEL_DIM=32, HIDDEN_DIM=64, NUM_HEADS=2, HEAD_DIM=8).items():
    monkeypatch.setattr(translation.Translation, name, size)


def test_measures_and_draws(small, tmp_path, capsys):
  del small
  image = tmp_path / 'compile.png'
  result = bench.run(arguments('--partitions=8,32', '--repetitions=1', f'--plot={image}'))
  assert result['seconds'].keys() == {'8', '32'}
  for n, seconds in result['seconds'].items():
    parts = result['lower_seconds'][n], result['compile_seconds'][n]
    assert min(parts) > 0 and sum(parts) == pytest.approx(seconds)
  assert result['ratio'] == result['seconds']['32'] / result['seconds']['8']
  assert image.read_bytes().startswith(b'\x89PNG')
  bench.show(result)
  assert f'{result["ratio"]:.2f}' in capsys.readouterr().out


@pytest.mark.parametrize('given, part', [
    (['--partitions=8,9'], 'choose from 8, 32, 128, 512, 2048'),
    (['--partitions=all'], 'choose from 8'),
    (['--repetitions=0'], 'give 1 at least'),
])
def test_faults(given, part):
  with pytest.raises(timing.BenchError, match=part):
    bench.run(arguments(*given))


def test_an_image_that_cannot_be_written():
  with pytest.raises(timing.BenchError, match='/proc/x.png'):
    bench.run(arguments('--plot=/proc/x.png'))
