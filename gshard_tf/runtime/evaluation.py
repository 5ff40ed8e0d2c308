"""Loss on held-out text, and the unigram model that it is compared with."""

from typing import Iterable

import jax
import numpy as np

from gshard_tf.runtime import program as program_lib


def held_out(program: program_lib.Program, theta, batches: Iterable[dict]) -> dict:
  """The metrics of a data set.

  Args:
    program: the compiled model.
    theta: a dict from path to weight, on the devices.
    batches: of the shape of a training batch, each sentence once; with the
      languages of its tokens where the artifact has languages.

  Returns:
    A dict from each metric's name to its weighted mean, a float or float64 array;
    `nll` is the cross entropy in nats per target token.
  """
  sums = {}
  for batch in batches:
    for name, pair in jax.device_get(program.evaluate(theta, program.put(batch))).items():
      value, weight = np.asarray(pair, np.float64)
      sums[name] = sums.get(name, 0.) + np.stack([value * weight, weight])
  return {name: (total / np.maximum(weight, 1e-9))[()] for name, (total, weight) in sums.items()}


def unigram_nll(train: Iterable[dict], held_out_batches: Iterable[dict], vocab_size: int) -> float:
  """The cross entropy of held-out text under a unigram model of the training text.

  Args:
    train: batches with tgt.labels and tgt.segment_ids int32 [B, L].
    held_out_batches: likewise.
    vocab_size: V; each token is counted once more than it occurs.

  Returns:
    Nats per target token.
  """
  count = lambda batches: sum(
      (np.bincount(b['tgt']['labels'][b['tgt']['segment_ids'] > 0], minlength=vocab_size)
       for b in batches), np.zeros(vocab_size, np.int64))
  seen, wanted = count(train) + 1, count(held_out_batches)
  return float(-(wanted * np.log(seen / seen.sum())).sum() / wanted.sum())
