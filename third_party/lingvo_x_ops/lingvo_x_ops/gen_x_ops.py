"""Lingvo's operators in plain TensorFlow, as far as a trainer calls them.

Loaded under the name `lingvo.core.ops.gen_x_ops`. Signatures and results are
those of `lingvo/core/ops/x_ops.cc`. An operator that is not defined here can
be looked up, which is all that importing Lingvo does, but not called.
"""

import numpy as np
import tensorflow as tf

_UNKNOWN_DIM = -1


def assert_shape_match(x, y, msg='', name=None):
  """Asserts that two shape vectors agree; -1 agrees with anything.

  Args:
    x: <int32>[rank], a shape.
    y: <int32>[rank], a shape.
    msg: what the error message starts with.
    name: of the operation.

  Returns:
    The assertion, an operation to depend on (None when eager).
  """
  with tf.name_scope(name or 'assert_shape_match'):
    x = tf.ensure_shape(tf.convert_to_tensor(x, tf.int32), [None])
    y = tf.ensure_shape(tf.convert_to_tensor(y, tf.int32), [None])
    rank = tf.minimum(tf.size(x), tf.size(y))
    x_dims, y_dims = x[:rank], y[:rank]
    dims_match = (
        tf.equal(x_dims, y_dims) | tf.equal(x_dims, _UNKNOWN_DIM)
        | tf.equal(y_dims, _UNKNOWN_DIM))
    match = tf.equal(tf.size(x), tf.size(y)) & tf.reduce_all(dims_match)
    return tf.debugging.Assert(match, [f'{msg} mismatch shape: x, y =', x, y])


def assert_same_dim0(x, msg='', name=None):
  """Asserts that no tensor is a scalar and all have the same first dimension.

  Args:
    x: a list of tensors.
    msg: what the error message starts with.
    name: of the operation.

  Returns:
    The assertion, an operation to depend on (None when eager).
  """
  with tf.name_scope(name or 'assert_same_dim0'):
    if not x:
      return tf.no_op()
    dims = tf.concat([tf.shape(t)[:1] for t in x], axis=0)  # no entry: scalar
    same = tf.equal(tf.size(dims), len(x)) & tf.reduce_all(
        tf.equal(dims, dims[:1]))
    return tf.debugging.Assert(
        same, [f'{msg} {len(x)} inputs, not scalars, need one dim0; have', dims])


def best_step(hist_file, tol=0.0, minimize=True, metric='', name=None):
  """Finds the best and the last step of a metric's history.

  Args:
    hist_file: a text file of "step value" lines, or a pattern of TensorBoard
      event files (`.../events.out.tfevents*`).
    tol: a value is better only if by more than this.
    minimize: whether smaller is better.
    metric: the tag to read in event files.
    name: of the operation.

  Returns:
    <int64>[2], the best and the last step; zeros for no history.
  """
  def _read_and_compare():
    history = _read_history(hist_file, metric)
    best = last = 0
    best_value = np.float32(0)
    for last in sorted(history):
      value = np.float32(history[last] if minimize else -history[last])
      if best == 0 or value + np.float32(tol) < best_value:
        best, best_value = last, value
    return np.array([best, last], np.int64)

  steps = tf.numpy_function(_read_and_compare, [], tf.int64, name=name)
  return tf.ensure_shape(steps, [2])


def _read_history(hist_file, metric):
  """Returns {step: value}; the first value of a step counts."""
  history = {}
  if 'events.out.tfevents' in hist_file:
    for path in tf.io.gfile.glob(hist_file):
      for event in tf.compat.v1.train.summary_iterator(path):
        for value in event.summary.value:
          if value.tag == metric:
            history.setdefault(event.step, value.simple_value)
  elif tf.io.gfile.exists(hist_file):
    with tf.io.gfile.GFile(hist_file) as lines:
      for step, value in map(str.split, lines):
        history.setdefault(int(step), float(value))
  return history


def __getattr__(op):
  if op.startswith('__'):
    raise AttributeError(f'module {__name__!r} has no attribute {op!r}')

  def missing(*unused_args, **unused_kwargs):
    raise RuntimeError(
        f'Lingvo op {op!r} exists only in its compiled library, which does '
        f'not load here ({__spec__.loader_state}); use a system with glibc '
        '2.38 and libstdc++ of GCC 14, such as Debian 13, or a model without '
        'the op')

  return missing
