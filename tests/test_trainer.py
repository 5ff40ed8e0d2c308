"""The binary, started as its users start it."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[1]
TINY = 'model_registry.smoke.Tiny'
DETERMINISTIC = 'model_registry.smoke.TinyDeterministic'


def _command(*flags):
  return [sys.executable, '-m', 'gshard_tf.trainer', *flags]


def _run(*flags, timeout=600):
  return subprocess.run(_command(*flags), cwd=ROOT, capture_output=True, text=True,
                        timeout=timeout, check=False,
                        env=os.environ | {'TF_CPP_MIN_LOG_LEVEL': '3'})


def _losses(logdir):
  with open(logdir / 'train' / 'losses.jsonl', encoding='utf-8') as f:
    return [json.loads(line) for line in f]


def _assert_one_line(result, *parts):
  assert result.returncode == 2, result.stderr
  assert len(result.stderr.strip().splitlines()) == 1, result.stderr
  for part in parts:
    assert part in result.stderr


@pytest.fixture(scope='module')
def logdir(tmp_path_factory):
  """Twenty steps of the deterministic tiny model on a mesh of 8."""
  folder = tmp_path_factory.mktemp('logdir')
  result = _run(f'--model={DETERMINISTIC}', f'--logdir={folder}', '--mesh=8', '--json')
  assert result.returncode == 0, result.stderr
  (folder / 'stdout').write_text(result.stdout)
  return folder


def test_reports_progress_and_ends_with_the_contract_on_one_line(logdir):
  lines = (logdir / 'stdout').read_text().splitlines()
  assert any(re.match(r'step 20/20  loss \d\.\d+  [\d,]+ tokens/s  0:00:00 left', line)
             for line in lines), lines
  result = json.loads(lines[-1])
  assert result['step'] == 20 and result['resumed_from'] is None
  assert result['tokens_per_second'] > 0
  losses = _losses(logdir)
  assert [line['step'] for line in losses] == list(range(1, 21))
  assert result['loss'] == losses[-1]['loss']


def test_agrees_with_lingvos_own_trainer(logdir, tmp_path):
  result = subprocess.run(
      [sys.executable, '-m', 'lingvo.trainer', f'--model={DETERMINISTIC}',
       '--run_locally=cpu', '--mode=sync', f'--logdir={tmp_path}', '--logtostderr'],
      cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
  assert result.returncode == 0, result.stderr[-3000:]
  lingvo = [float(x) for x in re.findall(r'step: .* loss:(\S+) lr_schedule', result.stderr)]
  ours = [line['loss'] for line in _losses(logdir)]
  assert len(lingvo) == len(ours) == 20
  # Partitioning and compilation change the order of float32 sums, which the
  # steps carry on; 1e-6 was seen. Then a token whose second and third expert are
  # that near is sent to another one, and the losses part: 1e-2 was seen.
  assert max(abs(a - b) for a, b in zip(ours[:10], lingvo[:10])) < 1e-4
  assert max(abs(a - b) for a, b in zip(ours, lingvo)) < .05


def test_resumes_on_another_mesh(logdir):
  result = _run(f'--model={DETERMINISTIC}', f'--logdir={logdir}', '--mesh=4x2',
                '--max_steps=23', '--json')
  assert result.returncode == 0, result.stderr
  assert f'resumed from step 20 in {logdir}' in result.stdout
  assert json.loads(result.stdout.splitlines()[-1])['resumed_from'] == 20
  assert [line['step'] for line in _losses(logdir)] == list(range(1, 24))


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path):
  flags = [f'--model={TINY}', f'--logdir={tmp_path}', '--mesh=2', '--max_steps=100000']
  process = subprocess.Popen(_command(*flags), cwd=ROOT, stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)
  try:
    deadline = time.monotonic() + 300
    while not (tmp_path / 'checkpoints' / '30').is_dir():
      assert process.poll() is None and time.monotonic() < deadline
      time.sleep(.05)
  finally:
    process.send_signal(signal.SIGKILL)
    process.wait()
  before = {line['step']: line['loss'] for line in _losses(tmp_path)}
  result = _run(*flags[:-1], '--max_steps=60', '--json')
  assert result.returncode == 0, result.stderr
  resumed = json.loads(result.stdout.splitlines()[-1])['resumed_from']
  assert resumed >= 30
  after = _losses(tmp_path)
  assert [line['step'] for line in after] == list(range(1, max(60, resumed) + 1))
  # The steps after the checkpoint were done twice, from the same weights, on the
  # same batches, with the same seeds.
  for line in after:
    if line['step'] in before:
      assert line['loss'] == before[line['step']]


def test_learns_more_than_a_unigram_model(tmp_path):
  result = _run(f'--model={TINY}', f'--logdir={tmp_path}', '--mesh=8', '--max_steps=400', '--json')
  assert result.returncode == 0, result.stderr
  end = json.loads(result.stdout.splitlines()[-1])
  assert end['held_out_nll'] < end['unigram_nll'] - .1 < end['untrained_nll']


def test_an_unknown_model_names_the_nearest():
  _assert_one_line(_run('--model=model_registry.catalog.Demi', '--logdir=unused'),
                   'model_registry.catalog.Demi', 'did you mean model_registry.catalog.Demo')


def test_a_class_name_alone_finds_its_model():
  _assert_one_line(_run('--model=MoE2048E36', '--logdir=unused'),
                   'did you mean model_registry.m4.MoE2048E36L')


def test_list_shows_the_registered_models():
  result = _run('--list')
  assert result.returncode == 0 and not result.stderr
  names = result.stdout.split()
  assert {TINY, DETERMINISTIC, 'model_registry.catalog.Demo'} <= set(names)


@pytest.mark.parametrize('mesh, parts', [
    ('3', ['split over 3 devices', 'choose a mesh']),
    ('16', ['8 experts', 'split over 16 devices', 'divide 8']),
    ('8x', ['--mesh=8x', 'such as 8 or 4x2']),
    ('2x2x2', ['--mesh=2x2x2', '1 to 2 sizes']),
])
def test_a_mesh_that_does_not_fit(tmp_path, mesh, parts):
  result = _run(f'--model={TINY}', f'--logdir={tmp_path}', f'--mesh={mesh}')
  _assert_one_line(result, *parts)


def test_a_logdir_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  _assert_one_line(_run(f'--model={TINY}', f'--logdir={tmp_path}/file/logdir', '--mesh=2'),
                   'cannot write to --logdir')


def test_a_logdir_of_another_model_is_left_alone(logdir):
  before = sorted(os.listdir(logdir / 'artifact'))
  _assert_one_line(_run(f'--model={TINY}', f'--logdir={logdir}', '--mesh=8'),
                   DETERMINISTIC, 'choose another logdir')
  assert sorted(os.listdir(logdir / 'artifact')) == before
