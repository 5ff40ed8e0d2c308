"""Random numbers inside a step: functions of (global step, step seed) alone.

Lingvo counts a step seed up at each draw, in the order in which a step is
traced, so the same step draws the same numbers on any number of devices.

The numbers come from a hash of each element's index rather than from
`tf.random.stateless_uniform`: that one computes blocks of four numbers and
concatenates them, which XLA neither fuses nor vectorises (dropout took half of
the step of the demo model), where a hash is a few integer operations inside the
multiplication by the mask, and any device computes its own shard alone.
"""

import math

from lingvo.core import base_layer
from lingvo.core import py_utils
import tensorflow as tf

from gshard_tf import xla_sharding

_GOLDEN = 0x9e3779b9  # 2^32 over the golden ratio: spreads consecutive indices


def uniform(layer: base_layer.BaseLayer, shape, letters: str) -> tf.Tensor:
  """Draws from [0, 1).

  Args:
    layer: the layer that draws.
    shape: a static shape of rank 2 at least, of up to 2^32 rows.
    letters: its key in the sharding table.

  Returns:
    float32 of that shape, multiples of 2^-24, annotated.
  """
  return xla_sharding.annotate(uniform_hash(step_key(layer), shape), letters)


def step_key(layer: base_layer.BaseLayer) -> tf.Tensor:
  """A key, uint32 [2], of one more draw in this step."""
  return tf.cast(py_utils.GenerateStepSeedPair(layer.params), tf.uint32)


def normal(layer: base_layer.BaseLayer, shape, letters: str) -> tf.Tensor:
  """As `uniform`, from the standard normal distribution."""
  return to_normal(uniform(layer, shape, letters))


def to_normal(x: tf.Tensor) -> tf.Tensor:
  """Uniform numbers of `uniform` to standard normal ones."""
  # By the inverse of the distribution function; half a step off 0, where it is
  # infinite, and of negative numbers alone, since TensorFlow rounds the greatest to 1.
  y = 2. * x - (1. - 2.**-24)
  return -math.sqrt(2.) * tf.sign(y) * tf.math.erfinv(-tf.abs(y))


def hash_bits(x: tf.Tensor, seed: int) -> tf.Tensor:
  """Hashes integers: uint32 of any shape to uint32, a different bijection for each seed."""
  return _mix(_mix(x ^ tf.constant(seed, tf.uint32)) + tf.constant(_GOLDEN, tf.uint32))


def uniform_hash(key: tf.Tensor, shape) -> tf.Tensor:
  """Hashes a key and the index of each element to [0, 1).

  Args:
    key: uint32 [2].
    shape: a static shape of rank 2 at least.

  Returns:
    float32 of that shape.
  """
  rank, stride = len(shape), 1
  row = tf.zeros([1] * rank, tf.uint32)
  for dim in reversed(range(rank - 1)):
    row += _index(shape, dim) * tf.constant(stride % 2**32, tf.uint32)
    stride *= int(shape[dim])
  return uniform_rows(key, row, int(shape[-1]))


def uniform_rows(key: tf.Tensor, row: tf.Tensor, size: int) -> tf.Tensor:
  """Hashes a key, numbers of rows, and the index of each element in its row.

  Args:
    key: uint32 [2].
    row: uint32 [..., 1].
    size: of a row.

  Returns:
    float32 [..., size] in [0, 1).
  """
  # Unmixed, consecutive steps would draw the same rows in another order: row
  # indices and steps are small numbers, and r ^ s has few values.
  key = _mix(_mix(key[0]) ^ key[1])
  row = _mix(_mix(row ^ key) ^ _mix(key + tf.constant(_GOLDEN, tf.uint32)))  # [..., 1]
  column = _index([1] * (row.shape.rank - 1) + [size], row.shape.rank - 1)
  bits = _mix(row ^ (column * tf.constant(_GOLDEN, tf.uint32)))
  return tf.cast(tf.bitwise.right_shift(bits, tf.constant(8, tf.uint32)), tf.float32) * 2.**-24


def _index(shape, dim):
  """uint32 0, 1, ... along `dim`, of size 1 elsewhere."""
  ones = [1] * len(shape)
  ones[dim] = int(shape[dim])
  return tf.reshape(tf.cast(tf.range(int(shape[dim])), tf.uint32), ones)


def _mix(x):
  """C. Wellons' `lowbias32`: a bijection of 32 bits in which every bit counts."""
  for shift, factor in ((16, 0x7feb352d), (15, 0x846ca68b)):
    x = (x ^ tf.bitwise.right_shift(x, tf.constant(shift, tf.uint32))) * tf.constant(factor, tf.uint32)
  return x ^ tf.bitwise.right_shift(x, tf.constant(16, tf.uint32))


def dropout(layer: base_layer.BaseLayer, x: tf.Tensor, rate: float, letters: str) -> tf.Tensor:
  """Zeroes elements with probability `rate` and scales the rest by 1/(1-rate).

  Args:
    layer: the layer that draws; at evaluation nothing is dropped.
    x: a tensor of static shape.
    rate: probability in [0, 1).
    letters: the key of `x` in the sharding table.

  Returns:
    A tensor like `x`.
  """
  if layer.do_eval or not rate:
    return x
  return mask(x, uniform(layer, x.shape, letters), rate)


def mask(x: tf.Tensor, uniform_numbers: tf.Tensor, rate: float) -> tf.Tensor:
  """Zeroes elements where the numbers are under `rate`, and scales the rest by 1/(1-rate)."""
  return x * tf.cast(uniform_numbers >= rate, x.dtype) / (1. - rate)
