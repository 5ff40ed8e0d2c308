"""Draws the training curves of one or several logdirs.

  python -m tools.plot_training --output=training.png logdir
  python -m tools.plot_training --output=both.png logdir logdir-dense

The loss of every step, smoothed, with the held-out losses of the untrained and
of the trained model and that of a unigram model beside it.
"""

import argparse
import json
import os
import sys

import matplotlib
import numpy as np
from tensorboard.backend.event_processing import event_accumulator

from gshard_tf import quiet

matplotlib.use('Agg')
from matplotlib import pyplot as plt  # pylint: disable=g-import-not-at-top,wrong-import-position

_SMOOTHING = 20  # steps


def read_losses(logdir: str) -> tuple[np.ndarray, np.ndarray]:
  """The steps and losses of `train/losses.jsonl`, int [N] and float [N].

  Raises:
    FileNotFoundError: nothing was trained in `logdir`.
  """
  with open(os.path.join(logdir, 'train', 'losses.jsonl'), encoding='utf-8') as f:
    lines = [json.loads(line) for line in f]
  return np.array([l['step'] for l in lines]), np.array([l['loss'] for l in lines])


def read_scalar(logdir: str, tag: str) -> list[tuple[int, float]]:
  """The steps and values of a TensorBoard scalar; empty where there is none."""
  with quiet.libraries():  # it imports TensorFlow
    events = event_accumulator.EventAccumulator(os.path.join(logdir, 'train')).Reload()
  if tag not in events.Tags()['scalars']:
    return []
  return [(e.step, e.value) for e in events.Scalars(tag)]


def smooth(values: np.ndarray, width: int) -> np.ndarray:
  """The mean of each value and up to `width - 1` before it; [N] -> [N]."""
  total = np.cumsum(values)
  total[width:] = total[width:] - np.cumsum(values)[:-width]
  return total / np.minimum(np.arange(1, len(values) + 1), width)


def draw(logdirs: list[str], output: str):
  """Draws the curves of `logdirs` to the image file `output`."""
  figure, axes = plt.subplots(figsize=(7, 4), constrained_layout=True)
  for logdir in logdirs:
    steps, losses = read_losses(logdir)
    name = os.path.basename(os.path.normpath(logdir))
    line, = axes.plot(steps, smooth(losses, _SMOOTHING), label=f'{name}: training loss')
    axes.plot(steps, losses, color=line.get_color(), alpha=.2, linewidth=.7)
    held_out = read_scalar(logdir, 'held_out/nll')
    if held_out:
      axes.plot(*zip(*held_out), 'o--', color=line.get_color(), markersize=4,
                label=f'{name}: held-out loss')
  unigram = read_scalar(logdirs[0], 'held_out/unigram_nll')
  if unigram:
    axes.axhline(unigram[-1][1], color='gray', linestyle=':', label='held-out loss of a unigram model')
  axes.set(xlabel='step', ylabel='nats per target token', ylim=(0, None))
  axes.grid(alpha=.3)
  axes.legend()
  figure.savefig(output, dpi=120)
  plt.close(figure)


def main():
  """Runs the command; returns its exit status."""
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('logdirs', nargs='+', metavar='LOGDIR')
  parser.add_argument('--output', required=True, help='an image file, such as training.png')
  args = parser.parse_args()
  try:
    draw(args.logdirs, args.output)
  except (OSError, ValueError) as error:
    print(f'plot_training: {error}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main())
