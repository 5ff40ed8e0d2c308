"""Moving tokens to the experts' buffers and back, along a `Routing`.

Dimensions: G groups, S tokens in a group, E experts, C capacity, K choices of a
token, M model. Both forms compute the same values and gradients:

* `einsum`: one-hot masks over flattened slots [G, S, E*C] (2006.16668, section
  3.1, has [G, S, E, C], whose minor dimension a TPU pads to 128).
* `gather`: indices, with gradients that are gathers too. The built-in gradient
  of a gather is a scatter over the whole batch, which does not partition.
"""

import tensorflow as tf

from gshard_tf.layers import gating


def dispatch_einsum(x: tf.Tensor, routing: gating.Routing) -> tf.Tensor:
  """Copies tokens into the slots.

  Args:
    x: [G, S, M].
    routing: of G groups of S tokens.

  Returns:
    [G, E*C, M] of the type of `x`; zeros in empty slots.
  """
  mask = tf.reduce_sum(_one_hot_slots(routing, x.dtype), 2)  # [G, S, E*C]
  return tf.einsum('gsk,gsm->gkm', mask, x)


def combine_einsum(y: tf.Tensor, routing: gating.Routing) -> tf.Tensor:
  """Sums each token's slots, weighted by its gates.

  Args:
    y: [G, E*C, M].
    routing: of G groups of S tokens.

  Returns:
    [G, S, M] of the type of `y`.
  """
  gate = tf.cast(routing.gate, y.dtype)[..., None]  # [G, S, K, 1]
  mask = tf.reduce_sum(_one_hot_slots(routing, y.dtype) * gate, 2)
  return tf.einsum('gsk,gkm->gsm', mask, y)


def _one_hot_slots(routing, dtype):
  return tf.one_hot(routing.slot, routing.num_experts * routing.capacity, dtype=dtype)


def dispatch_gather(x: tf.Tensor, routing: gating.Routing) -> tf.Tensor:
  """As `dispatch_einsum`, by indices."""
  choice = choice_of_slot(routing)
  token = tf.where(choice >= 0, choice // routing.slot.shape[2], -1)  # [G, E*C]

  # The indices are arguments, since in a tf.Graph what a custom gradient closes
  # over counts as part of it, the gating's variables too.
  @tf.custom_gradient
  def to_slots(x, token, slot):
    return _take(x, token), lambda dy: (tf.reduce_sum(_take_choices(dy, slot), 2), None, None)

  return to_slots(x, token, routing.slot)


def combine_gather(y: tf.Tensor, routing: gating.Routing) -> tf.Tensor:
  """As `combine_einsum`, by indices."""
  @tf.custom_gradient
  def to_choices(y, slot, choice):
    def gradient(dz):  # [G, S, K, M]
      flat = tf.reshape(dz, [dz.shape[0], -1, dz.shape[3]])
      return _take(flat, choice), None, None
    return _take_choices(y, slot), gradient

  z = to_choices(y, routing.slot, choice_of_slot(routing))  # [G, S, K, M]
  return tf.reduce_sum(z * tf.cast(routing.gate, y.dtype)[..., None], 2)


def choice_of_slot(routing: gating.Routing) -> tf.Tensor:
  """The inverse of `routing.slot`.

  A comparison of all choices with all slots of a group, summed: XLA fuses it
  into one reduction, and unlike a scatter it partitions along G.

  Args:
    routing: of G groups of S tokens with K choices.

  Returns:
    int32 [G, E*C]; `s * K + k` of the choice in each slot, -1 where it is empty.
  """
  groups, size, choices = routing.slot.shape
  slots = tf.range(routing.num_experts * routing.capacity)
  slot = tf.reshape(routing.slot, [groups, size * choices, 1])
  here = tf.equal(slot, slots)  # [G, S*K, E*C]
  number = tf.range(1, size * choices + 1)[:, None]
  return tf.reduce_sum(tf.where(here, number, 0), 1) - 1


def _take(rows, index):
  """rows [G, R, M] at index [G, I], zeros where it is negative: [G, I, M]."""
  taken = tf.gather(rows, tf.maximum(index, 0), batch_dims=1)
  return tf.where(index[..., None] >= 0, taken, tf.zeros([], rows.dtype))


def _take_choices(y, slot):
  """y [G, E*C, M] at slot [G, S, K], zeros where it is negative: [G, S, K, M]."""
  groups, size, choices = slot.shape
  taken = _take(y, tf.reshape(slot, [groups, size * choices]))
  return tf.reshape(taken, [groups, size, choices, y.shape[2]])
