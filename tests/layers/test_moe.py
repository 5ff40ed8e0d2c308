"""The Mixture-of-Experts layer against its dense twin, and what must not matter to it.

Dimensions: B rows, L positions, M model, H hidden, E experts.
"""

import re

import numpy as np
import pytest
import tensorflow as tf

from gshard_tf import xla_sharding
from gshard_tf.layers import activations
from gshard_tf.layers import feed_forward
from gshard_tf.layers import moe
from gshard_tf.layers import router
from gshard_tf.layers import weights
from gshard_tf.params import sharding
from tests.layers import layer as layers
from tests.layers.routers import ROUTERS

pytestmark = pytest.mark.slow

_B, _L, _M, _H, _E = 4, 6, 5, 7, 4
# Outputs are sums of at most 7 products of order 1, in two orders of summation.
_ATOL = 1e-5
_DISPATCHES = ('einsum', 'gather', 'dropless')


def moe_params(router_params=None, **kwargs):
  return moe.MoE.Params().Set(**dict(
      model_dim=_M, hidden_dim=_H, num_experts=_E, num_groups=2,
      router=router_params or top2()) | kwargs)


def top2(**kwargs):
  return router.Top2Router.Params().Set(**kwargs)


def make(router_params=None, seed=0, **kwargs):
  layer = layers.make(moe_params(router_params, **kwargs))
  return layer, layers.draw(layer, seed)


def inputs(seed=0, padding=0.3):
  rng = np.random.default_rng(seed)
  return (rng.standard_normal((_B, _L, _M), np.float32),
          (rng.random((_B, _L)) < padding).astype(np.float32))


@pytest.mark.parametrize('dispatch', _DISPATCHES)
@pytest.mark.parametrize('train', [False, True])
def test_identical_experts_equal_the_dense_layer(dispatch, train):
  layer, theta = make(top2(second_expert='all', capacity_factor=2. * _E), dispatch=dispatch)
  dense = layers.make(feed_forward.FeedForward.Params().Set(model_dim=_M, hidden_dim=_H))
  dense_theta = layers.draw(dense, 1)
  theta.experts.wi, theta.experts.wo = (tf.repeat(w[None], _E, 0) for w in (dense_theta.wi, dense_theta.wo))
  x, paddings = inputs()
  with layers.training() if train else layers.evaluation():
    out = layer.FProp(theta, tf.constant(x), tf.constant(paddings))
    want = dense.FProp(dense_theta, tf.constant(x), tf.constant(paddings))
  np.testing.assert_allclose(out.y, want.y * (1. - paddings)[..., None], atol=_ATOL)
  assert float(out.metrics.dropped[0]) == pytest.approx(0., abs=1e-6)
  assert float(want.aux_loss) == 0. and not want.metrics


def moe_loop(theta, x):
  """The layer for one token [M] in float64, no capacity: gates, then two experts."""
  logits = x @ theta.router.wg
  best = np.argsort(-logits)[:2]
  gate = np.exp(logits[best] - logits[best[0]])
  hidden = [np.maximum(x @ theta.experts.wi[e], 0.) for e in best]
  return sum(g / gate.sum() * h @ theta.experts.wo[e] for g, h, e in zip(gate, hidden, best))


@pytest.mark.parametrize('dispatch', _DISPATCHES)
def test_equals_a_loop_over_tokens(dispatch):
  layer, theta = make(dispatch=dispatch)
  x, paddings = inputs()
  with layers.evaluation():
    y = layer.FProp(theta, tf.constant(x), tf.constant(paddings)).y.numpy()
  theta = layers.as_float64(theta)
  for token in np.ndindex(_B, _L):
    want = np.zeros(_M) if paddings[token] else moe_loop(theta, x[token].astype(np.float64))
    np.testing.assert_allclose(y[token], want, atol=_ATOL)


@pytest.mark.parametrize('name', sorted(ROUTERS.keys() - {'all', 'sampling'}))  # as random
def test_any_router_goes_with_any_dispatch(name):
  x, paddings = (tf.constant(a) for a in inputs())
  ids = tf.constant(np.random.default_rng(0).integers(0, 99, (_B, _L)), tf.int32)
  results = []
  for dispatch in ('einsum', 'gather'):
    layer, theta = make(ROUTERS[name].Copy().Set(capacity_factor=.5, min_capacity=1), dispatch=dispatch)
    with layers.training(), tf.GradientTape() as tape:
      tape.watch(theta.Flatten())
      out = layer.FProp(theta, x, paddings, ids)
      loss = tf.reduce_sum(tf.sin(out.y)) + out.aux_loss
    if not layer.router.NEEDS_CAPACITY:
      assert 0. < float(out.metrics.dropped[0]) < 1.
    results.append([out.y, *tape.gradient(loss, theta.Flatten(), unconnected_gradients='zero')])
    assert np.abs(out.y).max() > 0.
  for einsum, gather in zip(*results):
    np.testing.assert_allclose(einsum, gather, atol=_ATOL)


@pytest.mark.parametrize('activation', activations.ACTIVATIONS)
def test_forms_of_dispatch_agree_with_room_for_all(activation):
  x, paddings = inputs()
  results = []
  for dispatch in _DISPATCHES:
    params = moe_params(top2(capacity_factor=None), dispatch=dispatch)
    params.experts.activation = activation
    layer = layers.make(params)
    theta = layers.draw(layer, 0)
    with layers.training(), tf.GradientTape() as tape:
      tape.watch(theta.Flatten())
      out = layer.FProp(theta, tf.constant(x), tf.constant(paddings))
      loss = tf.reduce_sum(tf.sin(out.y)) + out.aux_loss
    assert not out.metrics.dropped[0]
    results.append([out.y, *tape.gradient(loss, theta.Flatten())])
  for einsum, gather, dropless in zip(*results):
    np.testing.assert_allclose(gather, einsum, rtol=1e-5, atol=_ATOL)
    np.testing.assert_allclose(dropless, einsum, rtol=1e-5, atol=_ATOL)


@pytest.mark.parametrize('train', [False, True])
def test_dropless_takes_no_notice_of_capacity(train):
  tight = top2(capacity_factor=.1, eval_capacity_factor=.1, min_capacity=1, second_expert='all')
  x, paddings = (tf.constant(a) for a in inputs())
  outs = []
  for dispatch, router_params in (('dropless', tight), ('gather', top2(
      capacity_factor=None, second_expert='all'))):
    layer, theta = make(router_params, dispatch=dispatch)
    with layers.training() if train else layers.evaluation():
      outs.append(layer.FProp(theta, x, paddings))
  assert not outs[0].metrics.dropped[0]
  np.testing.assert_allclose(outs[0].y, outs[1].y, atol=_ATOL)


def test_a_router_that_needs_a_capacity_is_refused_by_dropless():
  with pytest.raises(ValueError, match='dispatch is dropless, but ExpertChoiceRouter has no meaning'):
    make(router.ExpertChoiceRouter.Params(), dispatch='dropless')


@pytest.mark.parametrize('name', ['all', 'top3', 'noisy', 'sigmoid', 'bounded_expert_choice'])
def test_order_of_experts_does_not_matter(name):
  layer, theta = make(ROUTERS[name].Copy().Set(eval_capacity_factor=1., min_capacity=1))
  rng = np.random.default_rng()
  order = rng.permutation(_E)
  if name == 'sigmoid':  # experts of a node stay together
    order = np.ravel(rng.permuted(np.reshape(np.arange(_E), [2, -1]), axis=1)[rng.permutation(2)])
  permuted = theta.DeepCopy()
  permuted.router = theta.router.Transform(lambda w: tf.gather(w, order, axis=-1))
  permuted.experts = theta.experts.Transform(lambda w: tf.gather(w, order))
  x, paddings = (tf.constant(a) for a in inputs())
  with layers.evaluation():
    want, got = (layer.FProp(t, x, paddings) for t in (theta, permuted))
  np.testing.assert_allclose(got.y, want.y, atol=_ATOL)
  np.testing.assert_allclose(got.aux_loss, want.aux_loss, rtol=1e-5)
  np.testing.assert_array_equal(got.metrics.dropped[0], want.metrics.dropped[0])


def test_padding_takes_no_place():
  layer, theta = make(top2(capacity_factor=1., min_capacity=1))
  x, paddings = inputs()
  other = np.where(paddings[..., None] == 1, 100. * inputs(seed=1)[0], x).astype(np.float32)
  outs = []
  for value in (x, other):
    with layers.training():
      outs.append(layer.FProp(theta, tf.constant(value), tf.constant(paddings)))
  np.testing.assert_array_equal(outs[0].y, outs[1].y)
  np.testing.assert_allclose(outs[0].aux_loss, outs[1].aux_loss, rtol=1e-6)
  assert not outs[0].y.numpy()[paddings == 1].any()


@pytest.mark.parametrize('groups', [1, 2, 8])
def test_at_evaluation_a_row_does_not_depend_on_its_neighbours(groups):
  layer, theta = make(top2(capacity_factor=1.))
  layer.params.num_groups = groups
  x, paddings = inputs()
  # All neighbours alike, so that with less room than for all they would collide.
  crowded = np.broadcast_to(x[:1], x.shape).copy()
  crowded[2] = x[2]
  with layers.evaluation():
    want = layer.FProp(theta, tf.constant(x), tf.constant(paddings))
    got = layer.FProp(theta, tf.constant(crowded), tf.constant(paddings))
  np.testing.assert_allclose(got.y[2], want.y[2], atol=1e-6)
  assert float(got.metrics.dropped[0]) == pytest.approx(0., abs=1e-6)


def test_at_evaluation_capacity_can_be_bounded():
  layer, theta = make(top2(eval_capacity_factor=.5, min_capacity=1))
  with layers.evaluation():
    out = layer.FProp(theta, *(tf.constant(a) for a in inputs(padding=0.)))
  # 24 tokens want 48 places; 2 groups of 4 experts have ceil(.5 * 12 / 4) = 2 each.
  assert float(out.metrics.dropped[0]) >= 1. - 2 * 4 * 2 / 48 - 1e-6


def test_a_step_draws_the_same_numbers_again_and_the_next_step_others():
  layer, theta = make(dropout=.5)
  x, paddings = (tf.constant(a) for a in inputs())
  outs = []
  for step in (3, 3, 4):
    with layers.training(step):
      outs.append(layer.FProp(theta, x, paddings).y.numpy())
  np.testing.assert_array_equal(outs[0], outs[1])
  assert (outs[0] != outs[2]).any()


@pytest.mark.parametrize('train', [False, True])
def test_shared_experts_are_added_for_every_token(train):
  shared = feed_forward.FeedForward.Params().Set(hidden_dim=3)
  layer, theta = make(shared=shared)
  routed, _ = make()
  dense = layers.make(shared.Copy().Set(model_dim=_M))
  x, paddings = (tf.constant(a) for a in inputs())
  outs = []
  for run in (lambda: layer.FProp(theta, x, paddings), lambda: routed.FProp(theta, x, paddings),
              lambda: dense.FProp(theta.shared, x, paddings)):
    with layers.training() if train else layers.evaluation():
      outs.append(run().y)
  np.testing.assert_allclose(outs[0], outs[1] + outs[2], atol=_ATOL)
  assert np.abs(outs[2]).max() > 0.


def test_fine_grained_experts_equal_the_experts_that_they_are_slices_of():
  # DeepSeekMoE (2401.06066), section 3.1: 2E experts of half the hidden units, 2k of
  # them for a token. Where both halves of an expert have its logit, their gates are
  # half of its gate.
  topk = router.TopKRouter.Params
  coarse, theta = make(topk().Set(k=2), hidden_dim=2 * _H)
  fine, _ = make(topk().Set(k=4), num_experts=2 * _E)
  sliced = theta.DeepCopy()
  sliced.router.wg = tf.repeat(theta.router.wg, 2, axis=-1)
  wi, wo = theta.experts.wi, theta.experts.wo
  sliced.experts.wi = tf.reshape(
      tf.transpose(tf.reshape(wi, [_E, _M, 2, _H]), [0, 2, 1, 3]), [-1, _M, _H])
  sliced.experts.wo = tf.reshape(wo, [-1, _H, _M])
  x, paddings = (tf.constant(a) for a in inputs())
  with layers.evaluation():
    want, got = coarse.FProp(theta, x, paddings), fine.FProp(sliced, x, paddings)
  np.testing.assert_allclose(2. * got.y, want.y, atol=_ATOL)


def test_only_training_hands_out_updates():
  layer, theta = make(ROUTERS['sigmoid'])
  args = [tf.constant(a) for a in inputs()]
  with layers.evaluation():
    assert not layer.FProp(theta, *args).updates.Flatten()
  with layers.training():
    updates = layer.FProp(theta, *args).updates
  (spec, bias), = weights.pairs(weights.weight_specs(layer), updates)
  assert spec.path == 'router.bias' and not spec.trainable and bias.shape == [_E]


def test_a_mesh_that_does_not_divide_the_experts_raises_at_construction():
  mesh = xla_sharding.Mesh((3, 1), sharding.MESH_AXES)
  message = '4 experts do not split over 3 devices; set num_experts to a multiple of 3, or choose a mesh'
  with xla_sharding.partitioning(mesh, sharding.GSHARD), pytest.raises(ValueError, match=message):
    layers.make(moe_params())


def test_fewer_tokens_than_groups_are_groups_of_their_own():
  layer, theta = make(num_groups=64)
  x, paddings = (tf.constant(a) for a in inputs())
  with layers.evaluation():
    want = make()[0].FProp(theta, x, paddings).y
    np.testing.assert_allclose(layer.FProp(theta, x, paddings).y, want, atol=_ATOL)


def test_tokens_that_do_not_split_into_groups_raise():
  layer, theta = make(num_groups=5)
  with pytest.raises(ValueError, match='24 tokens of layer do not split into 5 groups; set num_groups to a divisor of 24'):
    layer.FProp(theta, *(tf.constant(a) for a in inputs()))


@pytest.mark.parametrize('bad, message', [
    (dict(num_experts=1), 'k is 2, but there are 1 experts; set k to 1 at most, or more experts'),
    (dict(num_groups=0), 'num_groups is 0; routing needs 1 at least'),
    (dict(dispatch='sort'), "dispatch is 'sort'; choose one of einsum, gather, dropless"),
    (dict(model_dim=0), 'wg of shape (0, 4): set every size'),
    (dict(hidden_dim=0), 'wi of shape (4, 5, 0): set every size'),
])
def test_bad_params_raise_at_construction(bad, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    layers.make(moe_params().Set(**bad))


def test_a_batch_without_tokens_raises():
  with pytest.raises(weights.ParamsError, match='0 tokens of a decoding step; set its rows'):
    moe.check_groups(4, 0, ' of a decoding step')
