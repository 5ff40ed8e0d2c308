"""Gating in which every expert chooses its tokens.

Dimensions: G groups, S tokens in a group, E experts, C capacity, K choices of a
token.
"""

import tensorflow as tf

from gshard_tf.layers import gating


def expert_choice(logits: tf.Tensor, nonpadding: tf.Tensor, capacity: int,
                  max_choices: int) -> gating.Routing:
  """Each expert takes the C tokens of a group that want it most (2202.09368, section 3.2).

  No expert is ever too full or idle, so there is no balance loss. How many
  experts a token gets differs from token to token, from none to all E. The
  dispatch works on K choices of every token; where K < E a token keeps the
  likeliest of those that took it, a simple form of section 3.3's bound on the
  experts of a token.

  A token's experts depend on the other tokens of its group, later ones too: so a
  sentence's translation depends on its neighbours, and the layer suits encoders.

  Args:
    logits: float32 [G, S, E].
    nonpadding: [G, S].
    capacity: C.
    max_choices: K.

  Returns:
    A `Routing` without losses; gates are probabilities among all experts, which
    do not sum to one over the experts that took a token.
  """
  num_experts = logits.shape[-1]
  probability = tf.nn.softmax(logits)  # [G, S, E]
  real = nonpadding[..., None] > 0
  by_expert = tf.transpose(tf.where(real, probability, -1.), [0, 2, 1])  # [G, E, S]
  order = tf.argsort(by_expert, direction='DESCENDING', stable=True)
  place = tf.transpose(tf.argsort(order, stable=True), [0, 2, 1])  # [G, S, E]
  taken = real & (place < capacity)
  slot = tf.where(taken, tf.range(num_experts) * capacity + place, -1)
  expert = tf.where(taken, tf.range(num_experts), -1)
  gate = tf.where(taken, probability, 0.)
  load = tf.reduce_sum(tf.cast(taken, tf.float32), 1)  # [G, E]
  if max_choices < num_experts:
    best = gating.choose(tf.where(taken, probability, -1.), max_choices)  # [G, S, K]
    slot, expert, gate = _pick(slot, best), _pick(expert, best), gating.at(gate, best)
    load = tf.reduce_sum(gating.load(expert, num_experts), 1)
  return gating.Routing(
      slot=slot, gate=gate, losses={}, num_experts=num_experts, capacity=capacity,
      expert=expert, load=load, entropy=gating.entropy(probability))


def _pick(values, expert):
  """int32 [G, S, E] at int32 [G, S, K]."""
  return tf.gather(values, expert, batch_dims=2)
