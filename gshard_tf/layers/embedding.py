"""Token embedding, shared with the softmax where a model wants it.

Dimensions: B rows, L positions, V vocabulary, M model.
"""

import tensorflow as tf

from gshard_tf.layers import weights
from gshard_tf.xla_sharding import annotate


class Embedding(weights.Layer):
  """A table [V, M]: rows for tokens, columns of logits for hidden states."""

  @classmethod
  def Params(cls):
    p = super().Params()
    p.Define('vocab_size', 0, 'V.')
    p.Define('model_dim', 0, 'M.')
    return p

  def __init__(self, params):
    super().__init__(params)
    p = self.params
    self.CreateWeight('table', 'vm', (p.vocab_size, p.model_dim),
                      weights.Init.fan_in(p.model_dim))

  def Lookup(self, theta, ids):
    """Embeds tokens, scaled by sqrt(M) (1706.03762, section 3.4).

    Args:
      theta: weights; table [V, M].
      ids: int32 [B, L].

    Returns:
      [B, L, M].
    """
    # The whole table on each device for the lookup, so that a device reads and
    # writes (in the gradient) the rows of its own tokens.
    table = annotate(theta.table, 'vm_lookup')
    return annotate(tf.gather(table, ids) * self.params.model_dim ** .5, 'blm')

  def Logits(self, theta, x):
    """Scores every token of the vocabulary, in float32 whatever `x` is.

    Args:
      theta: weights; table [V, M].
      x: [B, L, M].

    Returns:
      float32 [B, L, V], laid out as the sharding table says for `blv`.
    """
    return annotate(tf.einsum('blm,vm->blv', tf.cast(x, tf.float32), theta.table), 'blv')


def cross_entropy(logits: tf.Tensor, labels: tf.Tensor, smoothing: float):
  """Cross entropy of tokens, with and without label smoothing.

  Reductions over V and a one-hot product, no gather: logits that are split
  along V are never brought together.

  Args:
    logits: [B, L, V].
    labels: int32 [B, L].
    smoothing: the share of the target spread evenly over V (1512.00567,
      section 7).

  Returns:
    float32 [B, L] twice: with smoothing, and without (nats).
  """
  logits = tf.cast(logits, tf.float32)
  top = tf.stop_gradient(tf.reduce_max(logits, -1, keepdims=True))
  log_z = tf.math.log(tf.reduce_sum(tf.exp(logits - top), -1)) + top[..., 0]
  one_hot = annotate(tf.one_hot(labels, logits.shape[-1]), 'blv')
  nll = log_z - tf.reduce_sum(one_hot * logits, -1)
  uniform = log_z - tf.reduce_mean(logits, -1)
  return (1. - smoothing) * nll + smoothing * uniform, nll
