"""The report of a compilation for a TPU, made for real."""

import json
import pathlib
import subprocess
import sys

import pytest

from gshard_tf.runtime import roofline
from gshard_tf.runtime import topologies
from tests.tools import reports
from tools import aot_report
from tools import processes

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
TINY = 'model_registry.smoke.Tiny'
CONTRACT = {
    'model', 'topology', 'partitions', 'parameters', 'tokens_per_step', 'fits', 'hbm_limit',
    'memory', 'lower_seconds', 'compile_seconds', 'host_bytes', 'flops_per_core', 'estimated_step_seconds',
    'collectives', 'roofline'}


@pytest.fixture(name='run')
def _run(monkeypatch, capsys):
  """Runs the command here; returns its exit status, and what it prints."""
  def run(*flags):
    monkeypatch.setattr(sys, 'argv', ['aot_report', *flags])
    status = aot_report.main()
    said = capsys.readouterr()
    # Under pytest Lingvo's imports are heard, since sys.stderr is not the terminal.
    err = [line for line in said.err.splitlines() if not line.startswith('model_imports.py')]
    return status, said.out, '\n'.join(err)
  return run


def rows_to_the_experts():
  """Bytes that a core sends to the experts of one layer: 64 slots of 32 float32."""
  return 2 * 8 * 32 // 8 * 32 * 4


def test_a_command_that_fails_says_one_line_and_no_more():
  done = subprocess.run([sys.executable, '-m', 'tools.aot_report', f'--model={TINY}x',
                         '--topology=v3:2x2'], cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 2 and not done.stdout
  assert len(done.stderr.strip().splitlines()) == 1 and 'did you mean' in done.stderr


def test_the_smoke_model_compiles_for_eight_cores(run, tmp_path):
  page = tmp_path / 'report.html'
  status, out, err = run(f'--model={TINY}', '--topology=v3:2x2', '--json', f'--html={page}')
  assert status == 0, err
  report = json.loads(out.splitlines()[-1])
  assert CONTRACT <= set(report)
  assert report['partitions'] == 8 and report['fits']
  assert report['parameters'] == 291_712
  assert report['tokens_per_step'] == 8 * 32
  memory = report['memory']
  assert memory['total'] >= memory['arguments'] + memory['temporaries']
  assert report['headroom'] == report['hbm_limit'] - memory['total']
  # A core has its share of the experts, and less than all of the weights.
  assert memory['arguments'] < 4 * report['parameters'] * 2
  # To the experts and back, forward and backward, in two MoE layers; more would be
  # of the routing, and small.
  assert report['collectives']['all-to-all']['count'] >= 8
  assert report['collectives']['all-to-all']['bytes'] < 2 * 8 * rows_to_the_experts()
  parts = [report['roofline'][name] for name in roofline.PARTS]
  assert report['roofline']['total'] == pytest.approx(sum(parts))
  # The compiler pads dimensions of 8 and 32 to tiles; the roofline does not.
  assert report['roofline']['total'] < report['estimated_step_seconds']
  products = sum(part['flops'] for part in report['roofline_work'].values())
  assert products < report['flops_per_core'] < 2 * products
  assert report['flops_per_token'] == pytest.approx(report['flops_per_core'] * 8 / 256)
  assert report['tokens_per_second'] == pytest.approx(256 / report['estimated_step_seconds'])
  assert report['paper'] is None and not report['uncounted_loops']
  layers = {b['layer'] for b in report['buffers']}
  assert len(report['buffers']) == 10 and 'source_embedding' in layers
  for part in ('roofline', 'all-to-all', 'headroom', '291,712'):
    assert part in out and part in page.read_text().lower()


def test_topologies_are_listed(run):
  status, out, _ = run('--topology=list', '--json')
  rows = json.loads(out.splitlines()[-1])
  assert status == 0 and len(rows) == len(topologies.listing())
  pod = next(r for r in rows if r['topology'] == 'v3:32x32')
  assert pod['cores'] == 2048 and pod['flops_per_second'] == 61.5e12
  assert 'v6e:16x16' in out and '15.48 GiB' in out


@pytest.mark.parametrize('flags, part', [
    (['--topology=v3:2x2'], '--model is missing'),
    ([f'--model={TINY}', '--topology=v3:2*2'], 'did you mean v3:2x2'),
    ([f'--model={TINY}', '--topology=v3:2x3'], 'libtpu cannot describe it'),
    ([f'--model={TINY}', '--topology=v3:2x2', '--mesh=3'], 'product is 8'),
    ([f'--model={TINY}', '--topology=v3:2x2', '--set=REMATT=block'], 'did you mean REMAT'),
    ([f'--model={TINY}', '--topology=v3:2x2', '--compare=REMATT=block'], 'did you mean REMAT'),
    ([f'--model={TINY}', '--topology=v3:2x2', '--set=MODEL_PARTITIONS=3'], 'do not split'),
    ([f'--model={TINY}', '--topology=v3:2x2', '--set=NUM_EXPERTS=12'], '12 experts')])
def test_faults_are_one_line(run, flags, part):
  status, out, err = run(*flags)
  assert status == 2 and part in err, err
  assert len(err.strip().splitlines()) == 1 and not out, err


def test_without_libtpu_one_line_says_what_to_do(run, monkeypatch):
  monkeypatch.setattr(aot_report.aot.importlib.util, 'find_spec', lambda name: None)
  status, _, err = run(f'--model={TINY}', '--topology=v3:2x2')
  assert status == 2 and 'make setup-tpu' in err and len(err.strip().splitlines()) == 1


def made(name, topology, mesh, settings):
  """A report; of a variant that does not fit."""
  del mesh
  return reports.report(total=(20 if settings else 10) * reports.GIB, model=name,
                        topology=topology, settings=settings)


def test_what_does_not_fit_exits_3(run, monkeypatch):
  monkeypatch.setattr(aot_report, 'report', made)
  status, out, _ = run(f'--model={TINY}', '--topology=v3:2x2', '--set=HIDDEN_DIM=128')
  assert status == 3 and 'does not fit' in out and 'what to change' in out


def test_variants_stand_beside_the_model(run, monkeypatch):
  monkeypatch.setattr(aot_report, 'report', made)
  def other(name, topology, mesh, settings):
    if 'DROPOUT=0' in settings:
      raise processes.FailedError('killed')
    return made(name, topology, mesh, settings)
  monkeypatch.setattr(processes, 'report', other)
  status, out, err = run(f'--model={TINY}', '--topology=v3:2x2', '--json', '--compare=DROPOUT=0',
                         '--compare=HIDDEN_DIM=128 REMAT=block')
  assert status == 0 and 'left out: killed' in err
  variant, = json.loads(out.splitlines()[-1])['variants']
  assert variant['settings'] == ['HIDDEN_DIM=128', 'REMAT=block'] and '(+100%)' in out
