"""Moving tokens to the experts' buffers and back, along a `Routing`.

Dimensions: G groups, S tokens in a group, E experts, C capacity, K choices of a
token, M model. Both forms compute the same values and gradients:

* `einsum`: one-hot masks over flattened slots [G, S, E*C] (2006.16668, section
  3.1, has [G, S, E, C], whose minor dimension a TPU pads to 128).
* `gather`: indices, with gradients of its own. The built-in gradient of a gather
  is a scatter over the whole batch, which does not partition.
"""

import tensorflow as tf

from gshard_tf.layers import gating

# Up to this many choices are added up in one fused pass over the tokens. More of
# them, as where experts choose tokens and so a token has E choices of which few
# are taken, are added in as many passes as the luckiest token was chosen.
_FEW_CHOICES = 8


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
  # The indices are arguments, since in a tf.Graph what a custom gradient closes
  # over counts as part of it, the gating's variables too.
  @tf.custom_gradient
  def to_slots(x, token, slot):
    return _take(x, token), lambda dy: (_sum_slots(dy, token, slot), None, None)

  return to_slots(x, _token(choice_of_slot(routing), routing), routing.slot)


def combine_gather(y: tf.Tensor, routing: gating.Routing) -> tf.Tensor:
  """As `combine_einsum`, by indices."""
  # The gates are brought to the slots, so that nothing has a row for each choice.
  @tf.custom_gradient
  def gates(gate, choice, slot):
    def gradient(dgate):
      flat = _take(dgate, tf.reshape(slot, [slot.shape[0], -1]))
      return tf.reshape(flat, slot.shape), None, None
    return _take(tf.reshape(gate, [gate.shape[0], -1, 1]), choice), gradient

  @tf.custom_gradient
  def to_tokens(y, token, slot):
    return _sum_slots(y, token, slot), lambda dz: (_take(dz, token), None, None)

  choice = choice_of_slot(routing)
  gate = tf.cast(gates(routing.gate, choice, routing.slot), y.dtype)  # [G, E*C, 1]
  return to_tokens(y * gate, _token(choice, routing), routing.slot)


def choice_of_slot(routing: gating.Routing) -> tf.Tensor:
  """The inverse of `routing.slot`.

  By sorting, which partitions along G and takes n log n; a scatter would not
  partition, and to compare all choices with all slots takes their product.

  Args:
    routing: of G groups of S tokens with K choices.

  Returns:
    int32 [G, E*C]; `s * K + k` of the choice in each slot, -1 where it is empty.
  """
  groups, size, choices = routing.slot.shape
  slots, number = routing.num_experts * routing.capacity, size * choices
  slot = tf.reshape(routing.slot, [groups, number])
  # A marker for each slot, behind the choice that is in it; what is dropped last.
  key = tf.concat([tf.where(slot >= 0, 2 * slot, 2 * slots),
                   tf.broadcast_to(2 * tf.range(slots) + 1, [groups, slots])], 1)
  order = tf.argsort(key, stable=True)
  marker = tf.argsort(order, stable=True)[:, number:]  # [G, E*C], its place in the order
  before = tf.gather(order, tf.maximum(marker - 1, 0), batch_dims=1)
  return tf.where((marker > 0) & (before < number), before, -1)


def _token(choice, routing):
  """The token int32 [G, E*C] in each slot, from its choice; -1 where it is empty."""
  return tf.where(choice >= 0, choice // routing.slot.shape[2], -1)


def _take(rows, index):
  """rows [G, R, M] at index [G, I], zeros where it is negative: [G, I, M]."""
  taken = tf.gather(rows, tf.maximum(index, 0), batch_dims=1)
  return tf.where(index[..., None] >= 0, taken, tf.zeros([], rows.dtype))


def _sum_slots(y, token, slot):
  """Each token's rows of y [G, E*C, M], given its slots or their tokens: [G, S, M].

  Added in float32: a token may have many choices.
  """
  size, choices = slot.shape[1:]
  add = lambda z, index: z + tf.cast(_take(y, index), tf.float32)
  z = tf.zeros([y.shape[0], size, y.shape[2]])
  if choices <= _FEW_CHOICES:
    for k in range(choices):
      z = add(z, slot[..., k])
    return tf.cast(z, y.dtype)
  by_token = tf.argsort(tf.where(token >= 0, token, size), stable=True)  # [G, E*C], slots
  count = tf.reduce_sum(tf.cast(slot >= 0, tf.int32), 2)  # [G, S]
  first = tf.cumsum(count, 1, exclusive=True)

  def add_next(n, z):
    nth = tf.gather(by_token, tf.minimum(first + n, token.shape[1] - 1), batch_dims=1)
    return n + 1, add(z, tf.where(n < count, nth, -1))

  most = tf.reduce_max(count)
  return tf.cast(tf.while_loop(lambda n, z: n < most, add_next, (0, z))[1], y.dtype)
