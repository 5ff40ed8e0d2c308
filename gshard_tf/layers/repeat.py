"""A loop over layers that differ in nothing but their weights, and recomputation.

Both hold only the inputs of a layer for the backward pass, which computes the
layer once more before it differentiates it (1604.06174, section 4).

The functions are for compiled programs alone: they use operations that only XLA
has.
"""

from typing import Callable

import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla


def repeat(body: Callable, times: int, x: tf.Tensor, shared: list[tf.Tensor],
           theta: list[tf.Tensor]):
  """Applies a layer `times` times, each time with its own slice of the weights.

  Compiled as one loop, so that the size of the program does not depend on
  `times`; the backward pass is a loop that runs the other way.

  Args:
    body: from (number int32 [], x, shared, weights of this repetition) to a
      tensor like `x`, and a list of floating tensors of static shapes.
    times: how many repetitions.
    x: input of the first repetition.
    shared: floating tensors that every repetition reads.
    theta: stacked weights, `times` the first dimension of each.

  Returns:
    The output of the last repetition, and the lists' tensors stacked along a
    new first dimension. Differentiable in `x`, `shared` and `theta`.
  """
  spec = lambda t: tf.TensorSpec(t.shape, t.dtype)
  traced = tf.function(body, autograph=False).get_concrete_function(
      tf.TensorSpec([], tf.int32), spec(x), list(map(spec, shared)),
      [tf.TensorSpec(w.shape[1:], w.dtype) for w in theta])
  extras = [spec(t) for t in traced.structured_outputs[1]]
  counts = len(shared), len(theta)

  @tf.custom_gradient
  def run(x, *tensors):
    shared, theta = tensors[:counts[0]], tensors[counts[0]:]

    def forward(i, x, inputs, *stacked):
      inputs = _put(inputs, i, x)
      x, new = body(i, x, list(shared), [_at(w, i) for w in theta])
      return i + 1, x, inputs, *(_put(s, i, t) for s, t in zip(stacked, new))

    _, y, inputs, *stacked = _loop(
        times, forward, x, _zeros(times, spec(x)), *(_zeros(times, e) for e in extras))

    def gradient(dy, *dstacked):

      def backward(count, dx, *sums):
        i = times - 1 - count
        dshared, dtheta = sums[:counts[0]], sums[counts[0]:]
        here = [_at(w, i) for w in theta]
        grads = _differentiate(
            lambda *a: body(i, a[0], list(a[1:1 + counts[0]]), list(a[1 + counts[0]:])),
            (_at(inputs, i), *shared, *here), (dx, [_at(d, i) for d in dstacked]))
        dx, added, new = grads[0], grads[1:1 + counts[0]], grads[1 + counts[0]:]
        return (count + 1, dx, *(s + a for s, a in zip(dshared, added)),
                *(_put(s, i, g) for s, g in zip(dtheta, new)))

      _, dx, *sums = _loop(times, backward, dy, *map(tf.zeros_like, shared),
                           *map(tf.zeros_like, theta))
      return (dx, *sums)

    return (y, *stacked), gradient

  y, *stacked = run(x, *shared, *theta)
  return y, stacked


def recompute(body: Callable, *tensors: tf.Tensor):
  """Applies a layer that the backward pass computes again.

  Args:
    body: from tensors to a tensor, and a list of tensors.
    *tensors: floating tensors, inputs and weights.

  Returns:
    What `body` returns, differentiable in `tensors`.
  """
  @tf.custom_gradient
  def run(*tensors):
    y, extras = body(*tensors)

    def gradient(dy, *dextras):
      # Without the barrier XLA would find that the layer was computed before.
      held = xla.optimization_barrier(*tensors, dy)
      return _differentiate(body, held[:-1], (held[-1], list(dextras)))

    return (y, *extras), gradient

  y, *extras = run(*tensors)
  return y, extras


def _differentiate(body, tensors, gradients):
  """Gradients of `body` at `tensors`, given those of what it returns."""
  tensors = list(map(tf.identity, tensors))
  with tf.GradientTape() as tape:
    tape.watch(tensors)
    y, extras = body(*tensors)
  return tape.gradient([y, *extras], tensors, output_gradients=[gradients[0], *gradients[1]],
                       unconnected_gradients=tf.UnconnectedGradients.ZERO)


def _loop(times, body, *state):
  return tf.while_loop(lambda i, *_: i < times, body, (tf.constant(0), *state))


def _zeros(times, spec):
  return tf.zeros([times, *spec.shape], spec.dtype)


def _at(stacked, i):
  """stacked [N, ...] at int32 [] i: [...]."""
  size = stacked.shape[1:]
  return tf.reshape(tf.slice(stacked, [i] + [0] * len(size), [1, *size]), size)


def _put(stacked, i, value):
  """stacked [N, ...] with `value` at int32 [] i."""
  return xla.dynamic_update_slice(stacked, value[None], [i] + [0] * len(value.shape))
