"""Tests of gshard_tf.runtime.evaluation."""

import collections
import math

import numpy as np
import pytest

from gshard_tf.runtime import evaluation
from tests import lowered
from tests.lowered import Small


def test_held_out_is_the_mean_over_all_tokens():
  """Of the full distribution that TensorFlow computes, one token after another."""
  # Batches of different sizes, so that the mean of their means is another number.
  batches = [lowered.held_out_batch(seed) for seed in (1, 2)]
  batches[1]['tgt']['segment_ids'][3:] = 0
  total, tokens, means = 0., 0, []
  model = lowered.Unlowered()
  for batch in batches:
    logits = model.logits(lowered.theta(), batch).numpy().astype(np.float64)  # [B, L, V]
    log_z = np.log(np.exp(logits).sum(-1))
    label = np.take_along_axis(logits, batch['tgt']['labels'][..., None], -1)[..., 0]
    nll = (log_z - label)[batch['tgt']['segment_ids'] > 0]
    total, tokens = total + nll.sum(), tokens + nll.size
    means.append(nll.mean())
  metrics = evaluation.held_out(lowered.program((2, 1)), lowered.theta(), batches)
  assert metrics['nll'] == pytest.approx(total / tokens, rel=1e-5)  # float32 against float64
  assert metrics['nll'] != pytest.approx(np.mean(means), rel=1e-4)
  assert metrics.keys() >= {'loss', 'nll', 'aux_loss'}


def test_loads_by_language_add_up_to_the_loads():
  batches = [lowered.held_out_batch(seed) for seed in (1, 2)]
  other_numbers = [{side: arrays | {'language': (arrays['language'] + 1) % 3}
                    for side, arrays in batch.items()} for batch in batches]
  metrics, renumbered = (evaluation.held_out(lowered.program((2, 1)), lowered.theta(), b)
                         for b in (batches, other_numbers))
  for stack, side in (('encoder', 'src'), ('decoder', 'tgt')):
    name = f'experts/{stack}.blocks_1/load'
    tokens = sum(np.bincount(b[side]['language'][b[side]['segment_ids'] > 0], minlength=3)
                 for b in batches)
    shares = metrics[f'{name}_by_language']
    assert shares.shape == (3, Small.NUM_EXPERTS)
    assert np.abs(shares[0] - shares[1]).max() > .001
    np.testing.assert_allclose(shares.sum(1), 1., rtol=1e-6)  # float32
    # Every token has two choices, so that tokens weigh as choices do.
    np.testing.assert_allclose(tokens / tokens.sum() @ shares, metrics[name], rtol=1e-5)
    np.testing.assert_allclose(np.roll(shares, 1, 0), renumbered[f'{name}_by_language'], rtol=1e-6)


def test_unigram_nll_equals_a_plain_count():
  train, held_out = ([lowered.random_batch(s) for s in seeds] for seeds in ((1, 2, 3), (4, 5)))
  tokens = lambda batches: [
      int(label) for batch in batches for labels, segments in zip(
          batch['tgt']['labels'], batch['tgt']['segment_ids'])
      for label, segment in zip(labels, segments) if segment]
  seen = collections.Counter(tokens(train))
  total = sum(seen.values()) + Small.TARGET_VOCAB
  want = [-math.log((seen[token] + 1) / total) for token in tokens(held_out)]
  got = evaluation.unigram_nll(train, held_out, Small.TARGET_VOCAB)
  assert got == pytest.approx(sum(want) / len(want), rel=1e-12)


def test_unigram_nll_of_a_fair_choice_is_its_entropy():
  batch = lowered.random_batch(0)
  batch['tgt']['labels'] = np.arange(batch['tgt']['labels'].size).reshape(
      batch['tgt']['labels'].shape) % 4
  batch['tgt']['segment_ids'][:] = 1
  # One count is added to each of the four tokens, none to others.
  assert evaluation.unigram_nll([batch], [batch], 4) == pytest.approx(math.log(4))
