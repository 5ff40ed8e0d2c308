"""Lingvo's own command-line trainer, started as its users start it."""

import pathlib
import re
import subprocess
import sys

import pytest
import tensorflow as tf

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow  # half a minute of it is the trainer's own waiting
def test_trains_and_writes_a_checkpoint_and_summaries(tmp_path):
  result = subprocess.run(
      [sys.executable, '-m', 'lingvo.trainer', '--run_locally=cpu',
       '--mode=sync', '--model=tests.build.tiny_lingvo_model.Tiny',
       f'--logdir={tmp_path}', '--logtostderr'],
      cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
  assert result.returncode == 0, result.stderr[-3000:]

  losses = [float(x) for x in re.findall(r' loss:(\S+)', result.stderr)]
  assert len(losses) == 20 and losses[-1] < losses[0] / 10

  checkpoint = tf.train.latest_checkpoint(str(tmp_path / 'train'))
  assert checkpoint.endswith('ckpt-00000020')
  assert tf.train.load_variable(checkpoint, 'global_step') == 20

  (events,) = (tmp_path / 'train').glob('events.out.tfevents*')
  tags = {value.tag for event in tf.compat.v1.train.summary_iterator(str(events))
          for value in event.summary.value}
  assert any('loss' in tag for tag in tags), tags
