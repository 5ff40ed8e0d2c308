"""The Mixture-of-Experts feed-forward layer (2006.16668, sections 2.2 and 3.1).

Dimensions: B rows, L positions, G groups, S tokens in a group, E experts, C
capacity, Z = E*C slots, M model, H hidden.
"""

from lingvo.core import py_utils
import tensorflow as tf

from gshard_tf.layers import dispatch
from gshard_tf.layers import experts
from gshard_tf.layers import gating
from gshard_tf.layers import randomness
from gshard_tf.layers import weights
from gshard_tf.xla_sharding import annotate

_DISPATCH = {
    'einsum': (dispatch.dispatch_einsum, dispatch.combine_einsum),
    'gather': (dispatch.dispatch_gather, dispatch.combine_gather),
    'dropless': (None, None),
}


class MoE(weights.Layer):
  """E feed-forward layers, of which every token visits two.

  `FProp` has the signature of `feed_forward.FeedForward`.
  """

  @classmethod
  def Params(cls):
    p = super().Params()
    p.Define('model_dim', 0, 'M.')
    p.Define('hidden_dim', 0, 'H of one expert.')
    p.Define('num_experts', 0, 'E.')
    p.Define('num_groups', 1, 'G: tokens are routed within groups of equal size.')
    p.Define('capacity_factor', 2., 'Places over all experts for each token, in training.')
    p.Define('eval_capacity_factor', None,
             'The same at evaluation and decoding. None: room for every token, so '
             'that the result for a sentence does not depend on its neighbours.')
    p.Define('min_capacity', 4, 'The least C in training.')
    p.Define('second_expert', 'random', 'In training: random, or all.')
    p.Define('dispatch', 'gather', f'One of {", ".join(_DISPATCH)}.')
    p.Define('dropout', 0., 'Probability that a hidden unit is dropped in training.')
    p.Define('experts', experts.Experts.Params(),
             'The feed-forwards; their sizes and dropout are those above.')
    return p

  def __init__(self, params):
    super().__init__(params)
    p = self.params
    for name, choices in (('second_expert', ('random', 'all')), ('dispatch', tuple(_DISPATCH))):
      if p.Get(name) not in choices:
        raise ValueError(f'{self.path}: {name} is {p.Get(name)!r}; choose one of {", ".join(choices)}')
    if p.num_experts < 2:
      raise ValueError(f'{self.path}: num_experts is {p.num_experts}; top-2 gating needs 2 at least')
    if p.num_groups < 1:
      raise ValueError(f'{self.path}: num_groups is {p.num_groups}; routing needs 1 at least')
    if p.capacity_factor <= 0:
      raise ValueError(f'{self.path}: capacity_factor is {p.capacity_factor}; it must be positive')
    self.CreateWeight('wg', 'me', (p.model_dim, p.num_experts),
                      weights.Init.fan_in(p.model_dim))
    self.CreateChild('experts', p.experts.Copy().Set(
        model_dim=p.model_dim, hidden_dim=p.hidden_dim, num_experts=p.num_experts,
        dropout=p.dropout))

  def FProp(self, theta, x, paddings):
    """Computes the layer.

    Args:
      theta: weights; wg [M, E], and those of the experts.
      x: [B, L, M].
      paddings: [B, L]; 1 at padding, which no expert sees.

    Returns:
      A NestedMap with y [B, L, M], aux_loss float32 [], and metrics: a
      NestedMap with dropped, float32 [], the share of the tokens' choices that
      found no place.

    Raises:
      ValueError: B * L tokens do not split into G groups.
    """
    p = self.params
    groups = self._num_groups(x.shape[0] * x.shape[1])
    tokens = annotate(tf.reshape(x, [groups, -1, p.model_dim]), 'gsm')
    nonpadding = 1. - tf.reshape(tf.cast(paddings, tf.float32), [groups, -1])
    routing = self._route(theta, tokens, nonpadding)

    y = annotate(self._visit(theta, tokens, routing), 'gsm')

    wanted = tf.reduce_sum(nonpadding) * routing.slot.shape[2]
    kept = tf.reduce_sum(tf.cast(routing.slot >= 0, tf.float32))
    return py_utils.NestedMap(
        y=annotate(tf.reshape(y, x.shape), 'blm'),
        aux_loss=routing.aux_loss,
        metrics=py_utils.NestedMap(dropped=1. - kept / tf.maximum(wanted, 1.)))

  def _visit(self, theta, tokens, routing):
    """The sums of the tokens' experts [G, S, M]."""
    dispatch_fn, combine_fn = _DISPATCH[self.params.dispatch]
    if dispatch_fn is None:
      return self.experts.FPropDropless(theta.experts, tokens, routing)
    xe = annotate(dispatch_fn(tokens, routing), 'gzm')
    return combine_fn(self.experts.FProp(theta.experts, xe), routing)

  def _num_groups(self, tokens):
    groups = min(self.params.num_groups, tokens)
    if tokens % groups:
      raise ValueError(
          f'{self.path}: {tokens} tokens do not split into {groups} groups; set '
          f'num_groups to a divisor of {tokens}')
    return groups

  def _route(self, theta, tokens, nonpadding):
    """tokens [G, S, M], nonpadding [G, S] -> Routing."""
    p = self.params
    groups, size, _ = tokens.shape
    # Gating in float32 whatever the activations are (2101.03961, section 2.4).
    logits = tf.einsum('gsm,me->gse', tf.cast(tokens, tf.float32),
                       tf.cast(theta.wg, tf.float32))
    factor = p.eval_capacity_factor if self.do_eval else p.capacity_factor
    capacity = size if factor is None or p.dispatch == 'dropless' else gating.expert_capacity(
        size, p.num_experts, factor, p.min_capacity)
    uniform = None
    if p.second_expert == 'random' and not self.do_eval:
      uniform = randomness.uniform(self, [groups, size], 'gs')
    routing = gating.top2(annotate(logits, 'gse'), nonpadding, capacity, uniform)
    return routing._replace(slot=annotate(routing.slot, 'gsk'),
                            gate=annotate(routing.gate, 'gsk'),
                            expert=annotate(routing.expert, 'gsk'))
