"""The experts: what dropout does to them, with slots and without."""

import re

import numpy as np
import pytest
import tensorflow as tf

from gshard_tf.layers import experts
from gshard_tf.layers import gating
from tests.layers import layer as layers

_S, _M, _H, _E = 64, 4, 32, 4


def make(dropout):
  """Experts that sum their inputs, all positive, _H times, and give that to each output."""
  layer = layers.make(experts.Experts.Params().Set(
      model_dim=_M, hidden_dim=_H, num_experts=_E, dropout=dropout))
  theta = layers.draw(layer, 0)
  return layer, theta.Transform(tf.ones_like)


def with_slots(layer, theta, x):
  return layer.FProp(theta, x)


def dropless(layer, theta, x):
  expert = tf.repeat(tf.range(_E), _S // _E)[None, :, None]
  routing = gating.Routing(
      slot=None, gate=tf.ones(expert.shape), losses={}, num_experts=_E, capacity=None,
      expert=expert, entropy=None)
  return layer.FPropDropless(theta, x, routing)


FORMS = pytest.mark.parametrize('form', [with_slots, dropless])


@FORMS
def test_hidden_units_are_dropped_one_by_one_and_the_rest_scaled(form):
  rate = .25
  layer, theta = make(rate)
  x = tf.random.stateless_uniform([1, _S, _M], [1, 2])
  with layers.training():
    y = form(layer, theta, x).numpy()[0]  # [S, M]
  np.testing.assert_allclose(y, np.broadcast_to(y[:, :1], y.shape), rtol=1e-5)
  share = y[:, 0] / (_H * x.numpy()[0].sum(-1))  # of hidden units, scaled
  kept = share * _H * (1. - rate)
  np.testing.assert_allclose(kept, np.round(kept), atol=1e-3)
  assert len(set(np.round(kept))) > 3  # tokens differ
  # A mean of _S * _H draws; five deviations.
  assert share.mean() == pytest.approx(1., abs=5. * np.sqrt(rate / (1. - rate) / (_S * _H)))


@FORMS
def test_a_step_drops_the_same_units_again_and_the_next_step_others(form):
  layer, theta = make(.5)
  outs = []
  for step in (3, 3, 4):
    with layers.training(step):
      outs.append(form(layer, theta, tf.ones([1, _S, _M])).numpy())
  np.testing.assert_array_equal(outs[0], outs[1])
  assert (outs[0] != outs[2]).any()


@FORMS
def test_nothing_is_dropped_at_evaluation(form):
  layer, theta = make(.5)
  with layers.evaluation():
    y = form(layer, theta, tf.ones([1, _S, _M]))
  np.testing.assert_allclose(y, np.full(y.shape, _H * _M), rtol=1e-6)


def value_and_gradients(function, x, w, dy):
  with tf.GradientTape() as tape:
    tape.watch((x, w))
    y = function(x, w)
  return (y, *tape.gradient(y, (x, w), output_gradients=dy))


@pytest.mark.parametrize('dtype', [tf.float32, tf.bfloat16, tf.float64])
@pytest.mark.parametrize('capacity', [4, 100])  # few rows, and many
def test_product_has_the_gradient_of_an_einsum(dtype, capacity):
  rng = np.random.default_rng(0)
  args = [tf.cast(rng.standard_normal(shape), dtype)
          for shape in ((3, 2 * capacity, 5), (3, 5, 6), (3, 2 * capacity, 6))]
  got = value_and_gradients(experts.product, *args)
  want = value_and_gradients(lambda x, w: tf.einsum('ezm,emh->ezh', x, w), *args)
  # Sums of at most 200 products of order 1; bfloat16 rounds them to 8 bits.
  tolerance = dict(rtol=2e-2, atol=.2) if dtype == tf.bfloat16 else dict(rtol=1e-5, atol=2e-5)
  for g, expected in zip(got, want):
    assert g.dtype == dtype
    np.testing.assert_allclose(tf.cast(g, tf.float32), tf.cast(expected, tf.float32), **tolerance)


def test_gradient_of_few_rows_has_the_weights_first():
  num_experts, rows, dim, hidden = 3, 4, 32, 64
  args = [tf.zeros(shape) for shape in (
      (num_experts, rows, dim), (num_experts, dim, hidden), (num_experts, rows, hidden))]
  step = tf.function(lambda *a: value_and_gradients(experts.product, *a)[1], jit_compile=True)
  text = step.experimental_get_compiler_ir(*args)(stage='optimized_hlo')
  (result,) = re.findall(r'= f32\[([\d,]+)\]\S* dot\(', text)
  # Expert, then the weights' dimension: with the other order it would be the last.
  assert result.startswith(f'{num_experts},{dim},')
