"""Gatings in which every token chooses its experts: logits to `gating.Choices`.

Dimensions: G groups, S tokens in a group, E experts, K experts chosen for a
token, D nodes that hold E/D experts each.
"""

import math

import tensorflow as tf

from gshard_tf.layers import gating
from gshard_tf.layers import randomness

SECOND_EXPERT = ('all', 'random', 'sampling')


def top2(logits: tf.Tensor, policy: str = 'all', uniform: tf.Tensor | None = None,
         normalize: bool = True) -> gating.Choices:
  """Top-2 gating (2006.16668, Algorithm 1).

  The policies for the second expert, named as in the authors' own code
  (lingvo/core/gshard_layers.py, Top2GatingOnLogits): `all` keeps every second
  expert; `random` keeps one where twice its gate exceeds a uniform number
  (lines 17 to 19); `sampling` draws it from the softmax over all experts but the
  first, by the largest logit with Gumbel noise added.

  Args:
    logits: float32 [G, S, E].
    policy: one of `SECOND_EXPERT`.
    uniform: float32 in [0, 1): [G, S] for `random`, [G, S, E] for `sampling`.
    normalize: scales both gates to sum to one (lines 6 and 16), before `random`
      compares the second.

  Returns:
    Choices with K = 2.
  """
  probability = tf.nn.softmax(logits)
  first = tf.argmax(logits, -1, output_type=tf.int32)  # [G, S]
  others = logits
  if policy == 'sampling':
    # Half a step off 0, where the noise would be infinite.
    others += -tf.math.log(-tf.math.log(tf.maximum(uniform, 2.**-25)))
  second = tf.argmax(gating.without(others, first), -1, output_type=tf.int32)
  gate = gating.at(probability, tf.stack([first, second], -1))  # [G, S, 2]
  if normalize:
    gate = gating.normalize(gate)
  if policy == 'random':
    second = tf.where(2. * gate[..., 1] > uniform, second, -1)
  return gating.Choices(tf.stack([first, second], -1), gate, probability)


def top_k(logits: tf.Tensor, k: int, normalize: bool = True) -> gating.Choices:
  """The K likeliest experts.

  Normalised, the gates are a softmax over the K chosen logits (Mixtral,
  2401.04088, section 2.1). Not normalised, they are probabilities among all
  experts: with K = 1 Switch (2101.03961, section 2.1), whose router would get no
  gradient otherwise, with any K V-MoE (2106.05974, section 2.2).

  Args:
    logits: float32 [G, S, E].
    k: K.
    normalize: scales the gates to sum to one.

  Returns:
    Choices.
  """
  probability = tf.nn.softmax(logits)
  expert = gating.choose(logits, k)
  gate = gating.at(probability, expert)
  return gating.Choices(expert, gating.normalize(gate) if normalize else gate, probability)


def noisy_load(logits: tf.Tensor, scale: tf.Tensor, noisy: tf.Tensor, k: int) -> tf.Tensor:
  """The probability that another draw of its noise leaves an expert among the top k.

  A smooth stand-in for the number of tokens of each expert (1701.06538,
  appendix A, equations 8 and 9).

  Args:
    logits: float32 [G, S, E], before noise.
    scale: float32 [G, S, E], standard deviation of the noise.
    noisy: float32 [G, S, E], logits with noise.
    k: K, less than E.

  Returns:
    float32 [G, S, E].
  """
  best = gating.at(noisy, gating.choose(noisy, k + 1))  # [G, S, K+1]
  chosen = noisy >= best[..., k - 1:k]
  # The k-th highest of the other experts.
  threshold = tf.where(chosen, best[..., k:], best[..., k - 1:k])
  return .5 * (1. + tf.math.erf((logits - threshold) / (scale * math.sqrt(2.))))


def sigmoid_top_k(logits: tf.Tensor, bias: tf.Tensor, k: int, *, num_nodes: int = 1,
                  max_nodes: int = 1, scaling_factor: float = 1.) -> gating.Choices:
  """Sigmoid gates chosen with a balancing bias, from few nodes.

  DeepSeek-V3 (2412.19437, section 2.1.2, equations 12 to 16): the experts are
  chosen by score plus bias, and weighted by the scores alone, normalised. The
  bias is that of loss-free balancing (2408.15664). Node-limited routing: a token
  may visit the `max_nodes` nodes with the highest sums of their best
  K/max_nodes biased scores.

  Args:
    logits: float32 [G, S, E].
    bias: float32 [E], no gradient passes through it.
    k: K, a multiple of `max_nodes`.
    num_nodes: D, a divisor of E; node d has the experts from d * E/D on.
    max_nodes: the most nodes that a token visits.
    scaling_factor: multiplies the gates.

  Returns:
    Choices; `probability` is the normalised scores (equation 19).
  """
  score = tf.sigmoid(logits)
  biased = tf.stop_gradient(score) + tf.stop_gradient(bias)
  if max_nodes < num_nodes:
    biased = _within_nodes(biased, num_nodes, max_nodes, k // max_nodes)
  expert = gating.choose(biased, k)
  gate = gating.normalize(gating.at(score, expert)) * scaling_factor
  return gating.Choices(expert, gate, gating.normalize(score))


def _within_nodes(score, num_nodes, max_nodes, best):
  """score [G, S, E], -inf outside the `max_nodes` best nodes of each token."""
  groups, size, experts = score.shape
  by_node = tf.reshape(score, [groups, size * num_nodes, experts // num_nodes])
  node_score = tf.reduce_sum(gating.at(by_node, gating.choose(by_node, best)), -1)
  nodes = gating.choose(tf.reshape(node_score, [groups, size, num_nodes]), max_nodes)
  allowed = tf.repeat(gating.load(nodes, num_nodes) > 0., experts // num_nodes, axis=-1)
  return tf.where(allowed, score, -math.inf)


def balanced_bias(bias: tf.Tensor, load: tf.Tensor, rate: float) -> tf.Tensor:
  """The next step's bias of loss-free balancing (2408.15664, Algorithm 1).

  Args:
    bias: float32 [E].
    load: float32 [E], how many choices of the batch each expert got.
    rate: u, what is added to the bias of an expert with less than the mean load,
      and taken from one with more.

  Returns:
    float32 [E].
  """
  return bias + rate * tf.sign(tf.reduce_mean(load) - load)


def hashed(ids: tf.Tensor, num_experts: int, seed: int) -> gating.Choices:
  """The expert that a hash of the token's id says (2106.04426, section 3.1).

  The paper's random hash: a table of random experts, computed here rather than
  stored. There is nothing to learn, and the gate is 1.

  Args:
    ids: int32 [G, S], ids of the tokens in the vocabulary.
    num_experts: E.
    seed: tells hashes apart.

  Returns:
    Choices with K = 1.
  """
  bits = randomness.hash_bits(tf.cast(ids, tf.uint32), seed)
  expert = tf.cast(tf.bitwise.right_shift(bits, tf.constant(1, tf.uint32)), tf.int32) % num_experts
  gate = tf.ones(ids.shape + [1])
  return gating.Choices(expert[..., None], gate, tf.one_hot(expert, num_experts))
