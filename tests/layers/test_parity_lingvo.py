"""Top-2 gating against Lingvo's Top2GatingOnLogits, which wrote the paper's models.

Dimensions: G groups, S tokens in a group, E experts, C capacity.
"""

from hypothesis import given, settings, strategies as st
from lingvo.core import gshard_layers
import numpy as np
import pytest
import tensorflow as tf

from gshard_tf.layers import gating
from gshard_tf.layers import token_choice
from tests.layers import routings


def combine_tensor(routing):
  """The gates of a routing, laid out as float32 [G, S, E, C]."""
  groups, size, _ = routing.slot.shape
  slots = tf.one_hot(routing.slot, routing.num_experts * routing.capacity)
  flat = tf.reduce_sum(slots * routing.gate[..., None], 2)
  return tf.reshape(flat, [groups, size, routing.num_experts, routing.capacity])


@pytest.fixture(name='uniform', scope='module')
def _uniform():
  """A box for the numbers that Lingvo is to draw."""
  box = {}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(gshard_layers.tf.random, 'uniform', lambda shape, dtype: tf.reshape(box['numbers'], shape))
    yield box


# With legacy_mtf_behavior gates are normalised before anything is dropped, as the
# paper says, and the loss counts padding, which is its quirk: it is not compared.
@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize('policy', token_choice.SECOND_EXPERT)
@settings(max_examples=15, deadline=None)
@given(problem=routings.problems())
def test_top2_equals_lingvos(uniform, policy, legacy, problem):
  groups, size, experts = problem.logits.shape
  logits, nonpadding, capacity = problem.args()
  shape = (groups, size, experts) if policy == 'sampling' else (groups, size)
  uniform['numbers'] = tf.constant(problem.rng.uniform(1e-6, 1., shape), tf.float32)
  aux_loss, combine, dispatch = gshard_layers.Top2GatingOnLogits(
      inputs=None, paddings=1. - nonpadding, logits=logits, num_devices=1, experts_dim=experts,
      expert_capacity_dim=capacity, fprop_dtype=tf.float32, use_xla_sharding=False,
      second_expert_policy=policy, second_expert_threshold=.5, legacy_mtf_behavior=legacy)

  choices = token_choice.top2(logits, policy, uniform['numbers'], normalize=legacy)
  routing = gating.assign(choices, nonpadding, capacity, normalize_kept=not legacy)
  # A few ulps of float32; Lingvo's 1e-9 in a denominator of 1/E at least.
  np.testing.assert_allclose(combine_tensor(routing), combine, atol=1e-6)
  np.testing.assert_array_equal(combine_tensor(routing) > 0., dispatch > 0.)
  if not legacy:
    balance = gating.balance_loss(choices.probability, choices.expert[..., :1], nonpadding)
    # Lingvo adds 1e-6 to the share of tokens in a group, 1/12 at least, twice.
    np.testing.assert_allclose(balance, aux_loss, rtol=5e-5, atol=1e-6)
