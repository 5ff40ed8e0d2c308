"""The plot of training curves."""

import json
import subprocess
import sys

from matplotlib import image
import numpy as np
import tensorboardX

from tools import plot_training


def _logdir(folder, losses):
  (folder / 'train').mkdir(parents=True)
  with open(folder / 'train' / 'losses.jsonl', 'w', encoding='utf-8') as f:
    for step, loss in enumerate(losses, 1):
      f.write(json.dumps({'step': step, 'loss': loss}) + '\n')
  with tensorboardX.SummaryWriter(str(folder / 'train')) as events:
    events.add_scalar('held_out/nll', 3., len(losses))
    events.add_scalar('held_out/unigram_nll', 4., len(losses))
  return str(folder)


def test_smoothing_is_a_trailing_mean():
  values = np.random.default_rng(0).normal(size=50)
  expected = [values[max(0, i - 6):i + 1].mean() for i in range(50)]
  np.testing.assert_allclose(plot_training.smooth(values, 7), expected, atol=1e-12)


def test_reads_what_the_trainer_writes_and_draws_it(tmp_path):
  logdir = _logdir(tmp_path / 'run', [5., 4., 3.])
  steps, losses = plot_training.read_losses(logdir)
  assert steps.tolist() == [1, 2, 3] and losses.tolist() == [5., 4., 3.]
  assert plot_training.read_scalar(logdir, 'held_out/nll') == [(3, 3.)]
  assert plot_training.read_scalar(logdir, 'nothing') == []
  plot_training.draw([logdir], str(tmp_path / 'plot.png'))
  assert np.ptp(image.imread(tmp_path / 'plot.png')) > .5


def test_a_logdir_without_training_is_one_line(tmp_path):
  result = subprocess.run(
      [sys.executable, '-m', 'tools.plot_training', f'--output={tmp_path}/x.png', str(tmp_path)],
      capture_output=True, text=True, check=False)
  assert result.returncode == 2 and len(result.stderr.strip().splitlines()) == 1
