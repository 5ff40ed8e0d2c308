"""Routing of tokens to experts: the `Routing` record and what all gatings share.

A gating is a pure function in two steps. The first, in `token_choice.py`, turns
logits into `Choices`: which experts a token wants, with which weights. The
second, `assign`, gives the choices places within the experts' capacity. In
`expert_choice.py` the experts choose instead, and both steps are one.

Dimensions: G groups, S tokens in a group, E experts, C capacity of one expert
in one group, K experts chosen for a token.
"""

import math
from typing import NamedTuple

import tensorflow as tf

_TINY = 1e-9  # keeps quotients finite where there is nothing to divide


class Choices(NamedTuple):
  """What tokens want, before capacity.

  Attributes:
    expert: int32 [G, S, K]; distinct experts, first choices first, -1 where a
      token goes without.
    gate: float32 [G, S, K]; the weight of each choice.
    probability: float32 [G, S, E]; the router's distribution over experts, by
      which balance, entropy and a token's priority are measured.
  """
  expert: tf.Tensor
  gate: tf.Tensor
  probability: tf.Tensor


class Routing(NamedTuple):
  """Where every token goes, and with which weight.

  Slot `e * C + c` of a group is place c in the buffer of expert e; it holds at
  most one choice of one token.

  Attributes:
    slot: int32 [G, S, K]; the slot of each choice of a token, -1 where it has
      none: it found its expert full, or `expert` is -1.
    gate: float32 [G, S, K]; the weight of each choice, 0 where it has no slot.
    losses: a dict from names to float32 [], not weighted: `balance` is 1 at
      perfect balance.
    num_experts: E.
    capacity: C.
    expert: int32 [G, S, K]; the expert of each choice, of one without a slot
      too; -1 for padding, and where a token goes without a k-th expert.
    load: float32 [G, E]; how many choices fell on each expert of a group, with
      those that found it full. Dispatch does without it and entropy.
    entropy: float32 [G, S]; of the router's distribution over experts, in nats;
      None for a router that has none.
  """
  slot: tf.Tensor
  gate: tf.Tensor
  losses: dict[str, tf.Tensor]
  num_experts: int
  capacity: int
  expert: tf.Tensor
  load: tf.Tensor | None = None
  entropy: tf.Tensor | None = None

  def kept(self) -> tf.Tensor:
    """bool [G, S, K]; which choices found a place.

    Where there is room for all this asks for no slots, so that a dispatch without
    slots need not compute any.
    """
    return self.expert >= 0 if self.capacity >= self.expert.shape[1] else self.slot >= 0


def expert_capacity(group_size: int, num_experts: int, capacity_factor: float | None,
                    min_capacity: int) -> int:
  """Places that an expert has for each group (2006.16668, section 2.2).

  The paper's 2N/(G*E) is a capacity factor of 2 with N/G tokens in a group.

  Args:
    group_size: S.
    num_experts: E.
    capacity_factor: places over all experts for each token; None for as many as
      there can ever be need of.
    min_capacity: a floor, which guards small groups.

  Returns:
    C, at most S: an expert gets a token of a group at most once.
  """
  if capacity_factor is None:
    return group_size
  capacity = math.ceil(capacity_factor * group_size / num_experts)
  return min(group_size, max(min_capacity, capacity))


def choose(scores: tf.Tensor, k: int) -> tf.Tensor:
  """The experts of the K highest scores.

  By K maxima rather than `tf.math.top_k`: K is small, and maxima stay with their
  group on every partitioner, fused with what made the scores.

  Args:
    scores: float32 [G, S, E].
    k: K, at most E.

  Returns:
    int32 [G, S, K], the highest first, the earlier of equal ones first.
  """
  chosen = []
  for _ in range(k):
    chosen.append(tf.argmax(scores, -1, output_type=tf.int32))
    scores = without(scores, chosen[-1])
  return tf.stack(chosen, -1)


def without(scores: tf.Tensor, expert: tf.Tensor) -> tf.Tensor:
  """Scores float32 [G, S, E] with -inf at `expert`, int32 [G, S]."""
  here = tf.equal(tf.range(scores.shape[-1]), expert[..., None])
  return tf.where(here, -math.inf, scores)


def at(values: tf.Tensor, expert: tf.Tensor) -> tf.Tensor:
  """The values of chosen experts; by a mask, whose gradient needs no scatter.

  Args:
    values: float32 [G, S, E].
    expert: int32 [G, S, K].

  Returns:
    float32 [G, S, K]; 0 where `expert` is -1.
  """
  # Choice by choice: nothing has the shape [G, S, K, E].
  here = lambda k: tf.equal(tf.range(values.shape[-1]), expert[..., k, None])
  return tf.stack([tf.reduce_sum(tf.where(here(k), values, 0.), -1)
                   for k in range(expert.shape[-1])], -1)


def normalize(gate: tf.Tensor) -> tf.Tensor:
  """Gates [G, S, K] scaled so that a token's sum to one; zeros stay zeros."""
  return tf.math.divide_no_nan(gate, tf.reduce_sum(gate, -1, keepdims=True))


def assign(choices: Choices, nonpadding: tf.Tensor, capacity: int, *,
           prioritized: bool = False, normalize_kept: bool = False) -> Routing:
  """Gives choices their places; who finds its expert full is dropped.

  First choices take their places before second ones, and so on (2006.16668,
  Algorithm 1). Among those the tokens come in their order in the group, or, if
  `prioritized`, in order of their highest probability: batch-prioritised routing
  (V-MoE, 2106.05974, section 4.1), which drops the tokens that the router is
  least sure of.

  Args:
    choices: of G groups of S tokens.
    nonpadding: [G, S]; 1 for tokens, 0 for padding, which takes no place.
    capacity: C.
    prioritized: whether sure tokens come first.
    normalize_kept: scales the gates that are left to sum to one.

  Returns:
    A `Routing` without losses.
  """
  num_experts = choices.probability.shape[-1]
  expert = tf.where(nonpadding[..., None] > 0, choices.expert, -1)
  priority = tf.reduce_max(choices.probability, -1) if prioritized else None
  slot, load_by_group = _places(expert, num_experts, capacity, priority)
  routing = Routing(
      slot=slot, gate=choices.gate, losses={}, num_experts=num_experts, capacity=capacity,
      expert=expert, load=load_by_group, entropy=entropy(choices.probability))
  gate = tf.where(routing.kept(), choices.gate, 0.)
  return routing._replace(gate=normalize(gate) if normalize_kept else gate)


def _places(expert, num_experts, capacity, priority):
  """Slots of experts [G, S, K], and the experts' loads; `priority` is float32 [G, S] or None."""
  if priority is not None:
    order = tf.argsort(priority, direction='DESCENDING', stable=True)  # [G, S]
    expert = tf.gather(expert, order, batch_dims=1)
  # Sorted by expert, first choices before second ones, a choice's place is how far
  # it is behind the first of its expert. A running count along S would be [G, S, E].
  groups, size, choices = expert.shape
  wanted = tf.reshape(tf.transpose(expert, [0, 2, 1]), [groups, choices * size])
  rank = tf.argsort(tf.argsort(tf.where(wanted >= 0, wanted, num_experts), stable=True), stable=True)
  counts = tf.reduce_sum(load(expert, num_experts), 1)  # [G, E]
  first = tf.cast(tf.cumsum(counts, 1, exclusive=True), tf.int32)
  first = tf.gather(first, tf.maximum(wanted, 0), batch_dims=1)
  place = tf.transpose(tf.reshape(rank - first, [groups, choices, size]), [0, 2, 1])
  slot = tf.where((expert >= 0) & (place < capacity), expert * capacity + place, -1)
  if priority is not None:
    slot = tf.gather(slot, tf.argsort(order, stable=True), batch_dims=1)
  return slot, counts


def _one_hot(expert, num_experts):
  """float32 [..., E]; all zeros where `expert` is -1."""
  return tf.one_hot(expert, num_experts)


def entropy(probability: tf.Tensor) -> tf.Tensor:
  """Entropy float32 [G, S] of distributions [G, S, E], in nats."""
  return -tf.reduce_sum(tf.math.xlogy(probability, probability), -1)


def balance_loss(probability: tf.Tensor, expert: tf.Tensor, nonpadding: tf.Tensor) -> tf.Tensor:
  """Sum over experts of (share of choices) * (mean probability), times E.

  2006.16668, Algorithm 1, line 13 (there of first choices); its 1/E is replaced
  by E so that perfect balance gives 1 whatever the number of experts, as in
  2101.03961, equation 4, and in the authors' own code, which the weight of 0.01
  in section 2.2 belongs to. A mean over groups.

  Args:
    probability: float32 [G, S, E].
    expert: int32 [G, S, K]; the choices that count, dropped or not.
    nonpadding: [G, S].

  Returns:
    float32 [].
  """
  num_experts, real = probability.shape[-1], tf.cast(nonpadding, tf.float32)[..., None]
  tokens = tf.reduce_sum(real, 1) + _TINY  # [G, 1]
  share = tf.reduce_sum(load(expert, num_experts) * real, 1) / (tokens * expert.shape[2])
  mean = tf.reduce_sum(probability * real, 1) / tokens  # [G, E]
  return tf.reduce_mean(tf.reduce_sum(share * mean, -1)) * num_experts


def load(expert: tf.Tensor, num_experts: int) -> tf.Tensor:
  """How many choices [G, S, K] of a token go to each expert: float32 [G, S, E]."""
  return tf.reduce_sum(_one_hot(expert, num_experts), 2)


def z_loss(logits: tf.Tensor, nonpadding: tf.Tensor) -> tf.Tensor:
  """Router z-loss (ST-MoE, 2202.08906, equation 5): keeps logits small.

  Args:
    logits: float32 [G, S, E].
    nonpadding: [G, S].

  Returns:
    float32 [], the mean over tokens of the squared log of the softmax's sum.
  """
  real = tf.cast(nonpadding, tf.float32)
  squares = tf.square(tf.reduce_logsumexp(logits, -1)) * real
  return tf.reduce_sum(squares) / tf.maximum(tf.reduce_sum(real), 1.)


def squared_variation(x: tf.Tensor) -> tf.Tensor:
  """The squared coefficient of variation (1701.06538, section 4).

  Args:
    x: float32 [G, E].

  Returns:
    float32 [], variance over squared mean along E, a mean over groups.
  """
  mean, variance = tf.nn.moments(x, -1)
  return tf.reduce_mean(variance / (tf.square(mean) + _TINY))
