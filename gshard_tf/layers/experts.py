"""The experts: E feed-forwards, each with weights of its own.

Dimensions: G groups, E experts, C capacity, Z = E*C slots, M model, H hidden.
"""

import tensorflow as tf

from gshard_tf.layers import activations
from gshard_tf.layers import randomness
from gshard_tf.layers import weights
from gshard_tf.xla_sharding import annotate


class Experts(weights.Layer):
  """The feed-forwards that the tokens of an MoE layer visit (2006.16668, section 2.2)."""

  @classmethod
  def Params(cls):
    p = super().Params()
    p.Define('model_dim', 0, 'M.')
    p.Define('hidden_dim', 0, 'H of one expert.')
    p.Define('num_experts', 0, 'E.')
    p.Define('activation', 'relu', activations.HELP)
    p.Define('dropout', 0., 'Probability that a hidden unit is dropped in training.')
    return p

  def __init__(self, params):
    super().__init__(params)
    p = self.params
    self._activation = activations.find(p.activation, self.path)
    for name in ('wi', 'wv') if self._activation.gated else ('wi',):
      self.CreateWeight(name, 'emh', (p.num_experts, p.model_dim, p.hidden_dim),
                        weights.Init.fan_in(p.model_dim, gain=2.))
    self.CreateWeight('wo', 'ehm', (p.num_experts, p.hidden_dim, p.model_dim),
                      weights.Init.fan_in(p.hidden_dim))

  def FProp(self, theta, x):
    """Computes each expert on its own slots.

    The change of annotation from the groups to the experts is what makes the
    partitioner send tokens between devices by an all-to-all, and back.

    Args:
      theta: weights; wi [E, M, H], wo [E, H, M], and if gated wv [E, M, H].
      x: [G, Z, M].

    Returns:
      [G, Z, M].
    """
    groups, slots, dim = x.shape
    x = annotate(tf.reshape(x, [groups, self.params.num_experts, -1, dim]), 'gecm')
    x = annotate(tf.transpose(x, [1, 0, 2, 3]), 'egcm')
    h = self._activation.hidden(
        lambda w: annotate(tf.einsum('egcm,emh->egch', x, w), 'egch'), theta)
    h = randomness.dropout(self, h, self.params.dropout, 'egch')
    y = annotate(tf.einsum('egch,ehm->egcm', h, theta.wo), 'egcm')
    y = annotate(tf.transpose(y, [1, 0, 2, 3]), 'gecm')
    return annotate(tf.reshape(y, [groups, slots, dim]), 'gzm')
