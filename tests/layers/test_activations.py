"""Activations of the dense layer and of the experts: against their formulas."""

import math
import re

import numpy as np
import pytest
import tensorflow as tf

from gshard_tf.layers import activations
from gshard_tf.layers import experts
from gshard_tf.layers import feed_forward
from tests.layers import layer as layers

_M, _H = 5, 7
_ATOL = 1e-5  # sums of 7 products of order 1


def sigmoid(x):
  return 1. / (1. + np.exp(-x))


def gelu(x):
  return x * .5 * (1. + np.vectorize(math.erf)(x / math.sqrt(2.)))


FORMULAS = {
    'relu': lambda x, w: np.maximum(x @ w.wi, 0.) @ w.wo,
    'gelu': lambda x, w: gelu(x @ w.wi) @ w.wo,
    'geglu': lambda x, w: gelu(x @ w.wi) * (x @ w.wv) @ w.wo,
    'swiglu': lambda x, w: (x @ w.wi) * sigmoid(x @ w.wi) * (x @ w.wv) @ w.wo,
}


def test_there_is_a_formula_for_each():
  assert FORMULAS.keys() == activations.ACTIVATIONS.keys()


@pytest.mark.parametrize('name', FORMULAS)
def test_dense_layer_equals_the_formula(name):
  layer = layers.make(feed_forward.FeedForward.Params().Set(model_dim=_M, hidden_dim=_H, activation=name))
  theta = layers.draw(layer, 0)
  x = np.random.default_rng(1).standard_normal((2, 3, _M))
  y = layer.FProp(theta, tf.constant(x, tf.float32), tf.zeros([2, 3])).y
  np.testing.assert_allclose(y, FORMULAS[name](x, layers.as_float64(theta)), atol=_ATOL)


@pytest.mark.parametrize('name', FORMULAS)
def test_each_expert_equals_the_formula_with_its_weights(name):
  groups, num_experts, capacity = 2, 3, 4
  layer = layers.make(experts.Experts.Params().Set(
      model_dim=_M, hidden_dim=_H, num_experts=num_experts, activation=name))
  theta = layers.draw(layer, 0)
  x = np.random.default_rng(1).standard_normal((groups, num_experts, capacity, _M))
  y = layer.FProp(theta, tf.constant(x.reshape(groups, -1, _M), tf.float32))
  y = y.numpy().reshape(x.shape)
  for e in range(num_experts):
    want = FORMULAS[name](x[:, e], layers.as_float64(theta.Transform(lambda w, e=e: w[e])))
    np.testing.assert_allclose(y[:, e], want, atol=_ATOL)


@pytest.mark.parametrize('name, hint', [('swigl', "; did you mean 'swiglu'?"), (None, '')])
@pytest.mark.parametrize('cls', [feed_forward.FeedForward, experts.Experts])
def test_an_unknown_activation_raises_at_construction(cls, name, hint):
  message = f'layer: activation is {name!r}; choose one of relu, gelu, geglu, swiglu{hint}'
  with pytest.raises(ValueError, match=re.escape(message) + '$'):
    layers.make(cls.Params().Set(activation=name))
