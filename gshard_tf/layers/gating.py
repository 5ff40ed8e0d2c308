"""Routing of tokens to experts: pure functions from logits to a `Routing`.

Dimensions: G groups, S tokens in a group, E experts, C capacity of one expert
in one group, K experts chosen for a token.
"""

import math
from typing import NamedTuple

import tensorflow as tf

_TINY = 1e-9  # keeps the renormalisation finite where a token has no gate


class Routing(NamedTuple):
  """Where every token goes, and with which weight.

  Slot `e * C + c` of a group is place c in the buffer of expert e; it holds at
  most one choice of one token.

  Attributes:
    slot: int32 [G, S, K]; the slot of each choice of a token, -1 where it is
      dropped.
    gate: float32 [G, S, K]; the weight of each choice, 0 where it is dropped.
    aux_loss: float32 []; load-balancing loss, 1 at perfect balance.
    num_experts: E.
    capacity: C.
    expert: int32 [G, S, K]; the expert of each choice, of one without a slot
      too; -1 for padding, and where a token goes without a k-th expert.
  """
  slot: tf.Tensor
  gate: tf.Tensor
  aux_loss: tf.Tensor
  num_experts: int
  capacity: int
  expert: tf.Tensor


def expert_capacity(group_size: int, num_experts: int, capacity_factor: float,
                    min_capacity: int) -> int:
  """Places that an expert has for each group (2006.16668, section 2.2).

  The paper's 2N/(G*E) is a capacity factor of 2 with N/G tokens in a group.

  Args:
    group_size: S.
    num_experts: E.
    capacity_factor: places over all experts for each token.
    min_capacity: a floor, which guards small groups.

  Returns:
    C, at most S: an expert gets a token of a group at most once.
  """
  capacity = math.ceil(capacity_factor * group_size / num_experts)
  return min(group_size, max(min_capacity, capacity))


def top2(logits: tf.Tensor, nonpadding: tf.Tensor, capacity: int,
         uniform: tf.Tensor | None) -> Routing:
  """Top-2 gating by groups (2006.16668, Algorithm 1).

  The first choices of a group take their places in order of the tokens, then
  the second choices do; who finds its expert full is dropped. Both gates are
  renormalised to sum to one before anything is dropped.

  Args:
    logits: [G, S, E]; computed with in float32.
    nonpadding: [G, S]; 1 for tokens, 0 for padding, which is never dispatched
      and does not count in the auxiliary loss.
    capacity: C.
    uniform: float32 [G, S] in [0, 1); the second expert is kept where twice its
      gate exceeds it (policy `random`). None keeps all (policy `all`).

  Returns:
    A `Routing` with K = 2.
  """
  num_experts = logits.shape[-1]
  nonpadding = tf.cast(nonpadding, tf.float32)
  probability = tf.nn.softmax(tf.cast(logits, tf.float32))  # [G, S, E]
  first = tf.argmax(probability, -1, output_type=tf.int32)  # [G, S]
  first_mask = tf.one_hot(first, num_experts)  # [G, S, E]
  others = probability * (1. - first_mask)
  # Below all others, so that it is not chosen twice where they underflow to 0.
  second = tf.argmax(others - first_mask, -1, output_type=tf.int32)  # [G, S]
  second_mask = tf.one_hot(second, num_experts)

  gates = tf.stack([tf.reduce_sum(probability * first_mask, -1),
                    tf.reduce_sum(others * second_mask, -1)], -1)  # [G, S, 2]
  gates /= tf.reduce_sum(gates, -1, keepdims=True) + _TINY

  first_mask *= nonpadding[..., None]
  second_mask *= nonpadding[..., None]
  if uniform is not None:
    second_mask *= tf.cast(2. * gates[..., 1] > uniform, tf.float32)[..., None]

  load = tf.reduce_sum(first_mask, 1, keepdims=True)  # [G, 1, E]
  slots, chosen = [], []
  for expert, mask, taken in ((first, first_mask, 0.), (second, second_mask, load)):
    place = tf.reduce_sum((tf.cumsum(mask, 1, exclusive=True) + taken) * mask, -1)
    kept = (tf.reduce_sum(mask, -1) > 0.) & (place < capacity)  # [G, S]
    chosen.append(tf.where(tf.reduce_sum(mask, -1) > 0., expert, -1))
    slots.append(tf.where(kept, expert * capacity + tf.cast(place, tf.int32), -1))
  slot = tf.stack(slots, -1)  # [G, S, 2]
  return Routing(
      slot=slot,
      gate=gates * tf.cast(slot >= 0, tf.float32),
      aux_loss=_balance_loss(probability, first_mask, nonpadding),
      num_experts=num_experts,
      capacity=capacity,
      expert=tf.stack(chosen, -1))


def _balance_loss(probability, mask, nonpadding):
  """Sum over experts of (share of tokens) * (mean probability), times E.

  Algorithm 1, line 13; its 1/E is replaced by E so that perfect balance gives 1
  whatever the number of experts, as in the authors' own code, which the weight
  of 0.01 in section 2.2 belongs to.
  """
  tokens = tf.reduce_sum(nonpadding, 1)[:, None] + _TINY  # [G, 1]
  share = tf.reduce_sum(mask, 1) / tokens  # [G, E]
  mean = tf.reduce_sum(probability * nonpadding[..., None], 1) / tokens
  return tf.reduce_mean(tf.reduce_sum(share * mean, -1)) * probability.shape[-1]
