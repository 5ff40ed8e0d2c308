"""The dense feed-forward layer.

Dimensions: B rows, L positions, M model, H hidden.
"""

from lingvo.core import py_utils
import tensorflow as tf

from gshard_tf.layers import activations
from gshard_tf.layers import randomness
from gshard_tf.layers import weights
from gshard_tf.xla_sharding import annotate


class FeedForward(weights.Layer):
  """Two projections with an activation between them (1706.03762, section 3.3)."""

  @classmethod
  def Params(cls):
    p = super().Params()
    p.Define('model_dim', 0, 'M.')
    p.Define('hidden_dim', 0, 'H.')
    p.Define('activation', 'relu', activations.HELP)
    p.Define('dropout', 0., 'Probability that a hidden unit is dropped in training.')
    return p

  def __init__(self, params):
    super().__init__(params)
    p = self.params
    self._activation = activations.find(p.activation, self.path)
    for name in ('wi', 'wv') if self._activation.gated else ('wi',):
      self.CreateWeight(name, 'mh', (p.model_dim, p.hidden_dim),
                        weights.Init.fan_in(p.model_dim, gain=2.))
    self.CreateWeight('wo', 'hm', (p.hidden_dim, p.model_dim),
                      weights.Init.fan_in(p.hidden_dim))

  def FProp(self, theta, x, paddings, ids=None, language=None):
    """Computes the layer.

    Args:
      theta: weights; wi [M, H], wo [H, M], and if gated wv [M, H].
      x: [B, L, M].
      paddings: [B, L]; not used, in common with the MoE layer.
      ids: int32 [B, L]; likewise.
      language: float32 [B, L, N]; likewise.

    Returns:
      A NestedMap with y [B, L, M], aux_loss float32 [] (zero), and metrics and
      updates, empty NestedMaps.
    """
    del paddings, ids, language
    theta = theta.Transform(lambda w: tf.cast(w, x.dtype))
    h = self._activation.hidden(
        lambda w: annotate(tf.einsum('blm,mh->blh', x, w), 'blh'), theta)
    h = randomness.dropout(self, h, self.params.dropout, 'blh')
    y = annotate(tf.einsum('blh,hm->blm', h, theta.wo), 'blm')
    return py_utils.NestedMap(
        y=y, aux_loss=tf.zeros([]), metrics=py_utils.NestedMap(),
        updates=py_utils.NestedMap())
