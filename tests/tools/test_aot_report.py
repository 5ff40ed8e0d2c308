"""The report of a compilation for a TPU, made for real."""

import json
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
TINY = 'model_registry.smoke.Tiny'


def _run(*flags):
  return subprocess.run([sys.executable, '-m', 'tools.aot_report', *flags], cwd=ROOT,
                        capture_output=True, text=True, timeout=600, check=False)


def test_the_smoke_model_compiles_for_eight_cores():
  result = _run(f'--model={TINY}', '--topology=v3:2x2', '--json')
  assert result.returncode == 0, result.stderr
  report = json.loads(result.stdout.splitlines()[-1])
  assert report['partitions'] == 8 and report['fits']
  assert report['parameters'] == 291_712
  assert report['tokens_per_step'] == 8 * 32
  memory = report['memory']
  assert memory['total'] >= memory['arguments'] + memory['temporaries']
  # A core has its share of the experts, and less than all of the weights.
  assert memory['arguments'] < 4 * report['parameters'] * 2
  # To the experts and back, forward and backward, in two MoE layers.
  assert report['collectives']['all-to-all']['count'] == 8


def test_faults_are_one_line():
  for flags, part in (([f'--model={TINY}x', '--topology=v3:2x2'], 'did you mean'),
                      ([f'--model={TINY}', '--topology=nonsense'], 'libtpu cannot describe it'),
                      ([f'--model={TINY}', '--topology=v3:2x2', '--mesh=3'], 'product is 8')):
    result = _run(*flags)
    assert result.returncode == 2 and part in result.stderr, result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
