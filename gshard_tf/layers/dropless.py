"""Experts without capacity: no token is dropped (MegaBlocks, 2211.15841).

The choices are sorted by expert and each expert's run of them is cut into blocks
of B rows, the last one padded. A loop takes one block after another: it gathers
the block's tokens, applies its expert, and adds the outputs to the tokens. The
loop ends with the last block that has a row, so the work is that of the tokens,
rounded up to blocks, however unequal the experts' loads are. Nothing has a row
for each choice: the gradient is a second such loop, which computes each block
again before it goes backward (one product more than the six, or nine, there are).

Shapes are static, and the loop is over all devices at once: with experts split
over D devices everything in it has a leading dimension D, and each device works
on the i-th block of its own experts. A device sees all tokens. So a layer costs an
all-gather of the tokens and a reduce-scatter of the outputs (and as much again
backward), T * M elements each, where the dispatches with capacity cost two
all-to-alls of K * T * M / D; and memory for T tokens on each device. The slowest
device sets the time, as everywhere.

Dimensions: G groups, S tokens in a group, T = G*S, K choices of a token, N = T*K,
E experts, D devices that they are split over, F = E/D, B rows of a block, M model.
"""

from typing import Callable, NamedTuple, Sequence

import numpy as np
import tensorflow as tf

from gshard_tf.layers import gating
from gshard_tf.xla_sharding import annotate

# Rows of a block. Fewer do not fill a product of matrices; with more, bringing the
# expert's weights takes no share of the time, and padding only grows.
_LEAST_ROWS, _MOST_ROWS = 8, 512


class _Runs(NamedTuple):
  """The choices sorted by expert.

  Attributes:
    order: int32 [N]; numbers of choices, those without an expert last.
    first: int32 [D, F]; where in `order` the run of an expert begins.
    size: int32 [D, F]; its length.
    end: int32 [D, F]; the number of the device's blocks up to this expert's last.
  """
  order: tf.Tensor
  first: tf.Tensor
  size: tf.Tensor
  end: tf.Tensor


class _Operands(NamedTuple):
  """What the loops work on.

  Attributes:
    x: [T, M].
    gate: [N].
    weights: tensors [D, F, ...].
    runs: of the choices.
    extra: see `visit`.
  """
  x: tf.Tensor
  gate: tf.Tensor
  weights: tuple[tf.Tensor, ...]
  runs: _Runs
  extra: tuple[tf.Tensor, ...]


class _Block(NamedTuple):
  """The i-th block of each device.

  Attributes:
    expert: int32 [D, 2]; the index of its expert in a tensor [D, F, ...].
    choice: int32 [D, B]; the numbers of its choices, -1 where there is none.
    token: int32 [D, B]; theirs.
  """
  expert: tf.Tensor
  choice: tf.Tensor
  token: tf.Tensor


def block_rows(choices: int, num_experts: int) -> int:
  """B: the power of two at or under the mean load of an expert, within bounds.

  Args:
    choices: N.
    num_experts: E.

  Returns:
    B.
  """
  mean = max(choices // num_experts, 1)
  return min(max(2 ** (mean.bit_length() - 1), _LEAST_ROWS), _MOST_ROWS)


def visit(function: Callable, x: tf.Tensor, routing: gating.Routing,
          weights: Sequence[tf.Tensor], letters: Sequence[str], devices: int,
          extra: Sequence[tf.Tensor] = ()) -> tf.Tensor:
  """Sums each token's experts, weighted by its gates.

  Args:
    function: an expert for each device, on a block of tokens each. Takes x
      [D, B, M], gate [D, B, 1], choice int32 [D, B] (its number `t * K + k`),
      weights [D, ...] and `extra`; returns [D, B, M], multiplied by the gate.
      A row whose choice is -1 is padding; what it gives does not matter.
    x: [G, S, M].
    routing: of which `expert` and `gate` are read, and no slot.
    weights: tensors [E, ...].
    letters: those of the weights, `e` first; the sharding table has them with a
      `d` before.
    devices: D, a divisor of E.
    extra: more tensors that `function` needs; they get no gradient.

  Returns:
    [G, S, M] of the type of `x`.
  """
  tokens, dim = x.shape[0] * x.shape[1], x.shape[2]
  choices = routing.expert.shape[2]
  rows = block_rows(tokens * choices, routing.num_experts)
  whole = lambda a: tf.reshape(annotate(tf.reshape(a, [tokens, choices]), 'sk'), [-1])
  operands = _Operands(
      x=annotate(tf.reshape(x, [tokens, dim]), 'sm'),
      gate=whole(tf.cast(routing.gate, x.dtype)),
      weights=tuple(
          annotate(tf.reshape(w, [devices, -1, *w.shape[1:]]), f'd{key}')
          for w, key in zip(weights, letters)),
      runs=_sort(whole(routing.expert), routing.num_experts, devices, rows),
      extra=tuple(extra))

  # All tensors are arguments, since in a tf.Graph what a custom gradient closes
  # over counts as part of it, the gating's variables too.
  @tf.custom_gradient
  def summed(*flat):
    given = tf.nest.pack_sequence_as(operands, flat)

    def gradient(dy):
      dy = annotate(dy, 'sm')
      dx, dgate, dweights = _backward(function, given, dy, rows, choices, letters)
      none = tf.nest.map_structure(lambda _: None, (given.runs, given.extra))
      return (dx, dgate, *dweights, *tf.nest.flatten(none))

    return _forward(function, given, rows, choices), gradient

  return tf.reshape(summed(*tf.nest.flatten(operands)), x.shape)


def _sort(expert, num_experts, devices, rows):
  """Choices' experts int32 [N] -> _Runs."""
  size = tf.reduce_sum(tf.one_hot(expert, num_experts, dtype=tf.int32), 0)  # [E]
  by_device = lambda a: tf.reshape(a, [devices, -1])
  return _Runs(
      order=tf.argsort(tf.where(expert >= 0, expert, num_experts), stable=True),
      first=by_device(tf.cumsum(size, exclusive=True)), size=by_device(size),
      end=tf.cumsum(by_device(-(-size // rows)), 1))


def _forward(function, given, rows, choices):
  """The outputs [T, M]."""

  def add_block(i, y):
    block = _block(i, given.runs, rows, choices)
    return i + 1, _add(y, block.token, function(*_take(given, block)))

  y = _zeros(given.runs, given.x.shape)
  return _total(_loop(given.runs, add_block, y)[0], given.x)


def _backward(function, given, dy, rows, choices, letters):
  """The gradients of x [T, M], gate [N] and weights [D, F, ...]."""

  def add_block(i, dx, dgate, *dweights):
    block = _block(i, given.runs, rows, choices)
    x, gate, choice, weights, *extra = _take(given, block)
    with tf.GradientTape() as tape:
      tape.watch((x, gate, weights))
      y = function(x, gate, choice, weights, *extra)
    x, gate, weights = tape.gradient(
        y, (x, gate, weights), output_gradients=_rows(dy, block.token))
    added = (tf.tensor_scatter_nd_add(total, block.expert, tf.cast(w, tf.float32))
             for total, w in zip(dweights, weights))
    return (i + 1, _add(dx, block.token, x), _add(dgate, block.choice, gate),
            *(annotate(w, f'd{key}') for w, key in zip(added, letters)))

  gate = given.gate[:, None]
  totals = [annotate(tf.zeros(w.shape), f'd{key}') for w, key in zip(given.weights, letters)]
  dx, dgate, *dweights = _loop(
      given.runs, add_block, _zeros(given.runs, given.x.shape), _zeros(given.runs, gate.shape), *totals)
  return (_total(dx, given.x), _total(dgate, gate)[:, 0],
          [tf.cast(d, w.dtype) for d, w in zip(dweights, given.weights)])


def _loop(runs, body, *initial):
  """Runs `body` on 0, 1, ... up to the last block of the device that has most."""
  last = tf.reduce_max(runs.end)
  return tf.while_loop(lambda i, *_: i < last, body, (0, *initial))[1:]


def _block(i, runs, rows, choices):
  """The i-th block of every device; one without rows where a device has none."""
  devices, experts = runs.size.shape
  expert = tf.reduce_sum(tf.cast(runs.end <= i, tf.int32), 1)  # [D]
  some = expert < experts
  index = tf.stack([_device_numbers(devices), tf.minimum(expert, experts - 1)], 1)
  first, size, end = (tf.gather_nd(a, index) for a in (runs.first, runs.size, runs.end))
  done = (i - end - (-size // rows)) * rows  # of the expert's choices, before this block
  row = done[:, None] + tf.range(rows)  # [D, B]
  real = some[:, None] & (row < size[:, None])
  place = tf.where(real, first[:, None] + row, 0)
  choice = annotate(tf.where(real, tf.gather(runs.order, place), -1), 'dz')
  token = tf.where(real, choice // choices, -1)
  return _Block(index, choice, token)


def _device_numbers(*shape):
  """int32 [D, ...], each row its number: a constant, which tells the partitioner that rows differ.

  It does not see as much in a `tf.range`, nor in a constant that is broadcast.
  """
  rows = np.arange(shape[0], dtype=np.int32).reshape([-1] + [1] * (len(shape) - 1))
  return tf.constant(np.broadcast_to(rows, shape))


def _take(given, block):
  """The arguments of the function for a block."""
  # The devices are a range in the index, by which the partitioner knows that
  # each takes from its own weights.
  return (_rows(given.x, block.token), _rows(given.gate[:, None], block.choice), block.choice,
          [tf.gather_nd(w, block.expert) for w in given.weights], *given.extra)


def _rows(table, index):
  """table [R, M] at index [D, B], zeros where it is negative: [D, B, M]."""
  taken = tf.where(index[..., None] >= 0, tf.gather(table, tf.maximum(index, 0)),
                   tf.zeros([], table.dtype))
  return annotate(taken, 'dzm')


def _zeros(runs, shape):
  """Sums for a table [R, M]: float32 [D, R + 1, M], the last row for padding."""
  return annotate(tf.zeros([runs.size.shape[0], shape[0] + 1, shape[1]]), 'dzm')


def _add(total, index, rows):
  """Adds rows [D, B, M] to total [D, R + 1, M] at int32 [D, B].

  The rows of a block are of different tokens, so the order of additions is that
  of the blocks, and results do not vary from run to run.
  """
  padding = total.shape[1] - 1
  index = tf.stack([_device_numbers(*index.shape), tf.where(index >= 0, index, padding)], -1)
  return annotate(tf.tensor_scatter_nd_add(total, index, tf.cast(rows, tf.float32)), 'dzm')


def _total(total, like):
  """Sums [D, R + 1, M] -> [R, M] of the type of `like`."""
  return tf.cast(tf.reduce_sum(total[:, :-1], 0), like.dtype)
