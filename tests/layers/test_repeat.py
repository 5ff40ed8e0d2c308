"""A loop over layers and recomputation, against the same layers written out.

Dimensions: N repetitions, B rows, M model.
"""

import re

import numpy as np
import pytest
import tensorflow as tf

from gshard_tf.layers import repeat

_B, _M = 3, 4


def body(i, x, shared, theta):
  """A layer whose every input has a gradient, and that knows its number."""
  w, b = theta
  y = tf.tanh(x @ w + b + shared[0]) * (1. + tf.cast(i, x.dtype))
  return y, [tf.reduce_sum(tf.square(y)), tf.reduce_mean(y, 0)]


def written_out(x, shared, w, b):
  extras = []
  for i in range(w.shape[0]):
    x, new = body(tf.constant(i), x, [shared], [w[i], b[i]])
    extras.append(new)
  return x, [tf.stack(e) for e in zip(*extras)]


def looped(x, shared, w, b):
  return repeat.repeat(body, w.shape[0], x, [shared], [w, b])


def recomputed(x, shared, w, b):
  extras = []
  for i in range(w.shape[0]):
    x, new = repeat.recompute(
        lambda x, s, *theta, i=i: body(tf.constant(i), x, [s], theta), x, shared, w[i], b[i])
    extras.append(new)
  return x, [tf.stack(e) for e in zip(*extras)]


def value_and_gradients(function):
  """Compiled: the results, then the gradients of a function of all of them."""

  @tf.function(jit_compile=True, autograph=False)
  def run(*inputs):
    with tf.GradientTape() as tape:
      tape.watch(inputs)
      y, extras = function(*inputs)
      loss = tf.reduce_sum(tf.sin(y)) + sum(tf.reduce_sum(tf.cos(e)) for e in extras)
    return y, *extras, *tape.gradient(loss, inputs)

  return run


def inputs(times):
  rng = np.random.default_rng()
  draw = lambda *shape: tf.constant(.5 * rng.standard_normal(shape))
  return draw(_B, _M), draw(_B, _M), draw(times, _M, _M), draw(times, _M)


@pytest.mark.parametrize('function', [looped, recomputed])
@pytest.mark.parametrize('times', [1, 2, 5])
def test_equals_the_layers_written_out(function, times):
  given = inputs(times)
  want = value_and_gradients(written_out)(*given)
  for got, exact in zip(value_and_gradients(function)(*given), want, strict=True):
    np.testing.assert_allclose(got, exact, rtol=1e-10, atol=1e-10)  # of float64


def test_the_program_does_not_grow_with_the_number_of_layers():
  sizes = [len(optimized(looped, inputs(times)).splitlines()) for times in (3, 30)]
  assert abs(sizes[1] - sizes[0]) < .1 * sizes[0]


def test_layers_are_computed_again_for_the_backward_pass():
  given = inputs(3)
  tanh = lambda function: len(re.findall(r' tanh\(', optimized(function, given)))
  # All but the last layer's, whose inputs XLA holds anyway.
  assert tanh(recomputed) > tanh(written_out)


def optimized(function, given):
  return value_and_gradients(function).experimental_get_compiler_ir(*given)('optimized_hlo')
