"""Norms, blocks and stacks.

Dimensions: B rows, L positions, M model.
"""

from lingvo.core import py_utils
import numpy as np
import pytest
import tensorflow as tf

from gshard_tf.layers import router
from gshard_tf.layers import transformer
from gshard_tf.layers import weights
from tests.layers import layer as layers
from tests.layers.stacks import MODEL_DIM as _M, block_params, make_stack, stack_params

_B, _L = 2, 4


@pytest.mark.parametrize('kind', ['rms', 'layer'])
@pytest.mark.parametrize('mean, scale', [(0., 1.), (3., 1e-2), (-5., 1e3)])
def test_norm_equals_float64(kind, mean, scale):
  layer = layers.make(transformer.Norm.Params().Set(model_dim=_M, kind=kind))
  theta = layers.draw(layer, 0)
  x = layers.normal(np.random.default_rng(1), _B, _L, _M, mean=mean, scale=scale)
  y = x.numpy().astype(np.float64)
  if kind == 'layer':
    y -= y.mean(-1, keepdims=True)
  y /= np.sqrt((y**2).mean(-1, keepdims=True) + 1e-6)
  # After the subtraction of a mean, an error of an ulp of |mean| over the spread.
  atol = 1e-5 * (1. + abs(mean) / scale)
  np.testing.assert_allclose(layer.FProp(theta, x), y * theta.scale.numpy(), atol=atol)


def test_norm_is_computed_in_float32():
  layer = layers.make(transformer.Norm.Params().Set(model_dim=_M, kind='layer'))
  theta = layers.draw(layer, 0)
  x = tf.cast(layers.normal(np.random.default_rng(1), _B, _L, _M), tf.bfloat16)
  got = layer.FProp(theta, x)
  assert got.dtype == tf.bfloat16
  want = tf.cast(layer.FProp(theta, tf.cast(x, tf.float32)), tf.bfloat16)
  np.testing.assert_array_equal(got, want)  # rounded once, at the end


def test_norm_of_an_unknown_kind_raises():
  with pytest.raises(ValueError, match="kind is 'batch'; choose rms or layer"):
    layers.make(transformer.Norm.Params().Set(model_dim=_M, kind='batch'))


def inputs():
  x = layers.normal(np.random.default_rng(0), _B, _L, _M)
  return x, py_utils.NestedMap(
      paddings=tf.zeros([_B, _L]), ids=tf.zeros([_B, _L], tf.int32), self_mask=tf.ones([_B, _L, _L], tf.bool))


def test_stack_is_its_blocks_and_a_norm():
  stack = make_stack(False, True)
  theta = layers.draw(stack, 0)
  x, context = inputs()
  with layers.evaluation():
    got = stack.FProp(theta, x, context)
    for block, block_theta in zip(stack.blocks, theta.blocks):
      x = block.FProp(block_theta, x, context).y
    np.testing.assert_allclose(got.y, stack.norm.FProp(theta.norm, x), atol=1e-6)


def test_block_adds_each_branch_to_its_input():
  block = layers.make(block_params(False))
  theta = layers.draw(block, 0)
  theta.self_attention.wo = tf.zeros_like(theta.self_attention.wo)
  theta.feed_forward.wo = tf.zeros_like(theta.feed_forward.wo)
  x, context = inputs()
  np.testing.assert_array_equal(block.FProp(theta, x, context).y, x)


@pytest.mark.parametrize('sparse', [(False,), (True,), (False, True, True)])
def test_aux_loss_is_the_mean_of_the_sparse_blocks(sparse):
  stack = make_stack(*sparse)
  theta = layers.draw(stack, 0)
  x, context = inputs()
  with layers.evaluation():
    out = stack.FProp(theta, x, context)
    losses = []
    for block, block_theta in zip(stack.blocks, theta.blocks):
      block_out = block.FProp(block_theta, x, context)
      x = block_out.y
      losses.append(float(block_out.aux_loss))
  sparse_losses = [l for l, s in zip(losses, sparse) if s]
  assert float(out.aux_loss) == pytest.approx(np.mean(sparse_losses or [0.]), rel=1e-5)
  assert sorted(out.metrics) == [i for i, s in enumerate(sparse) if s]


def test_dropout_only_in_training():
  stack = make_stack(False, dropout=.5)
  theta = layers.draw(stack, 0)
  x, context = inputs()
  with layers.evaluation():
    plain = make_stack(False).FProp(theta, x, context).y
    np.testing.assert_array_equal(stack.FProp(theta, x, context).y, plain)
  with layers.training():
    assert (stack.FProp(theta, x, context).y != plain).numpy().any()


def test_updates_of_blocks_in_a_loop_are_stacked_as_their_weights_are():
  params = stack_params(False, True, False, True)
  for block in params.blocks[1::2]:
    block.feed_forward.router = router.SigmoidRouter.Params().Set(k=1, bias_update_rate=.1)
  plain = layers.make(params)
  looped = layers.make(params.Copy().Set(remat='block', period=2))
  theta = layers.draw(plain, 0)
  stacked = theta.DeepCopy()
  stacked.blocks = [a.Pack([tf.stack(pair) for pair in zip(a.Flatten(), b.Flatten())])
                    for a, b in zip(theta.blocks[:2], theta.blocks[2:])]
  x, context = inputs()

  @tf.function(jit_compile=True, autograph=False)  # the loop is for compiled programs alone
  def updates(theta, x):
    stack = looped if len(theta.blocks) == 2 else plain
    with layers.training():
      return stack.FProp(theta, x, context).updates

  want = [block.feed_forward.router.bias for block in updates(theta, x).blocks[1::2]]
  (spec, got), = weights.pairs(weights.weight_specs(looped), updates(stacked, x))
  assert spec.path == 'blocks_1::2.feed_forward.router.bias'
  np.testing.assert_allclose(got, want, atol=1e-6)
  assert (got.numpy() != stacked.blocks[1].feed_forward.router.bias.numpy()).any()
