"""What to watch of a routing: loads, drops, gates, the router's certainty.

Every metric is a pair of a value and a weight. The weighted mean over parts of a
batch, or over batches, is then the metric of them all: a share of choices weighs
as much as there are choices. No gradient passes through any of them.

Dimensions: G groups, S tokens in a group, E experts, K experts chosen for a
token, N languages.
"""

import tensorflow as tf

from gshard_tf.layers import gating


def measure(routing: gating.Routing, nonpadding: tf.Tensor, tokens_choose: bool = True) -> dict:
  """The metrics of one layer.

  Everything is reduced to E numbers or one, so that a partitioned program
  exchanges no more.

  Args:
    routing: of the layer.
    nonpadding: [G, S]; 1 for tokens, 0 for padding.
    tokens_choose: whether a token's first choice comes first.

  Returns:
    A dict from names to pairs [value, weight] of float32, weights []:
      load: [E], each expert's share of the choices, those that found it full
        among them; the shares sum to 1.
      dropped: [], share of the choices that found no place.
      bypassed: [], share of the tokens that no expert computes.
      entropy: [], of the router's distribution, in nats, a mean over tokens; if
        there is one.
      first_gate, second_gate: [], mean weights of the first and of the second
        choices that found a place; if tokens choose, and so many experts.
  """
  real = tf.cast(nonpadding, tf.float32)
  kept = tf.cast(routing.kept(), tf.float32)  # [G, S, K]
  gate = tf.stop_gradient(routing.gate)
  load = tf.reduce_sum(routing.load, 0)
  choices, tokens = tf.reduce_sum(load), tf.reduce_sum(real)
  metrics = dict(
      load=_mean(load, choices),
      dropped=_mean(choices - tf.reduce_sum(kept), choices),
      bypassed=_mean(tokens - tf.reduce_sum(tf.reduce_max(kept, -1)), tokens))
  if routing.entropy is not None:
    metrics['entropy'] = _mean(tf.reduce_sum(tf.stop_gradient(routing.entropy) * real), tokens)
  if tokens_choose:
    for k, name in zip(range(gate.shape[-1]), ('first_gate', 'second_gate')):
      metrics[name] = _mean(tf.reduce_sum(gate[..., k]), tf.reduce_sum(kept[..., k]))
  return metrics


def load_by_language(routing: gating.Routing, language: tf.Tensor) -> list:
  """Which language uses which experts.

  Args:
    routing: of a layer.
    language: float32 [G, S, N], one-hot; that of padding does not count.

  Returns:
    float32 [N, E], for each language the experts' shares of its choices, and
    their weights [N, 1].
  """
  load = gating.load(routing.expert, routing.num_experts)  # [G, S, E]
  counts = tf.einsum('gsn,gse->ne', language, load)
  return _mean(counts, tf.reduce_sum(counts, -1, keepdims=True))


def dead(load: tf.Tensor) -> tf.Tensor:
  """How many experts no choice fell on: float32 [], of a load [E]."""
  return tf.reduce_sum(tf.cast(tf.equal(load, 0.), tf.float32))


def _mean(total, weight):
  return [tf.math.divide_no_nan(total, weight), weight]
