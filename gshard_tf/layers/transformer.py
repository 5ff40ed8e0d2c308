"""Transformer blocks, and a stack of blocks from a list of Params.

Dimensions: B rows, L positions, T positions of the encoder, M model.
"""

from lingvo.core import py_utils
import tensorflow as tf

from gshard_tf.layers import attention
from gshard_tf.layers import feed_forward
from gshard_tf.layers import randomness
from gshard_tf.layers import weights
from gshard_tf.xla_sharding import annotate


class Norm(weights.Layer):
  """RMS norm (1910.07467), or layer norm without a bias."""

  @classmethod
  def Params(cls):
    p = super().Params()
    p.Define('model_dim', 0, 'M.')
    p.Define('kind', 'rms', 'rms, or layer, which subtracts the mean first.')
    p.Define('epsilon', 1e-6, 'Added to the variance.')
    return p

  def __init__(self, params):
    super().__init__(params)
    p = self.params
    if p.kind not in ('rms', 'layer'):
      raise ValueError(f'{self.path}: kind is {p.kind!r}; choose rms or layer')
    self.CreateWeight('scale', 'm', (p.model_dim,), weights.Init.constant(1.))

  def FProp(self, theta, x):
    """Normalises the last dimension of `x`, in float32; returns its type."""
    p = self.params
    y = tf.cast(x, tf.float32)
    if p.kind == 'layer':
      y -= tf.reduce_mean(y, -1, keepdims=True)
    y *= tf.math.rsqrt(tf.reduce_mean(tf.square(y), -1, keepdims=True) + p.epsilon)
    return tf.cast(y * tf.cast(theta.scale, tf.float32), x.dtype)


class TransformerBlock(weights.Layer):
  """Self attention, cross attention if there is any, and a feed-forward.

  Each is preceded by a norm and added to its input (pre-norm, 2002.04745).
  """

  @classmethod
  def Params(cls):
    p = super().Params()
    p.Define('norm', Norm.Params(), 'Params of the norms.')
    p.Define('self_attention', attention.MultiHeadAttention.Params(), 'Self attention.')
    p.Define('cross_attention', None, 'Attention to the encoder; None in an encoder.')
    p.Define('feed_forward', feed_forward.FeedForward.Params(),
             'FeedForward or MoE.')
    p.Define('dropout', 0., 'Probability that an element of a residual branch is dropped.')
    return p

  def __init__(self, params):
    super().__init__(params)
    p = self.params
    names = ['self_attention', 'cross_attention', 'feed_forward']
    for name in names:
      if p.Get(name) is not None:
        self.CreateChild(f'{name}_norm', p.norm.Copy())
        self.CreateChild(name, p.Get(name))

  def FProp(self, theta, x, context):
    """Computes the block.

    Args:
      theta: weights.
      x: [B, L, M].
      context: a NestedMap with paddings [B, L], ids int32 [B, L] (of the tokens
        in the vocabulary), self_mask bool [B, L, L], and for a decoder encoded
        [B, T, M] and cross_mask bool [B, L, T].

    Returns:
      A NestedMap with y [B, L, M], aux_loss float32 [], metrics and updates, see
      MoE.FProp.
    """
    p = self.params
    normed = self.self_attention_norm.FProp(theta.self_attention_norm, x)
    x = self._Add(x, self.self_attention.FProp(
        theta.self_attention, normed, normed, context.self_mask))
    if p.cross_attention is not None:
      normed = self.cross_attention_norm.FProp(theta.cross_attention_norm, x)
      x = self._Add(x, self.cross_attention.FProp(
          theta.cross_attention, normed, context.encoded, context.cross_mask))
    return self._FeedForward(theta, x, context.paddings, context.ids)

  def ExtendStep(self, theta, x, cache, t, context):
    """Computes the block for one new position of a decoder.

    Args:
      theta: weights.
      x: [B, 1, M].
      cache: keys and values of earlier positions, see MultiHeadAttention.
      t: int32 [], the new position.
      context: a NestedMap with ids int32 [B, 1], cross, the encoder's keys and
        values for this block, and cross_mask bool [B, 1, T].

    Returns:
      [B, 1, M] and the new cache.
    """
    normed = self.self_attention_norm.FProp(theta.self_attention_norm, x)
    y, cache = self.self_attention.ExtendStep(theta.self_attention, normed, cache, t)
    x += y
    normed = self.cross_attention_norm.FProp(theta.cross_attention_norm, x)
    x += self.cross_attention.Query(
        theta.cross_attention, normed, context.cross, context.cross_mask)
    return self._FeedForward(theta, x, tf.zeros(x.shape[:2]), context.ids).y, cache

  def _FeedForward(self, theta, x, paddings, ids):
    normed = self.feed_forward_norm.FProp(theta.feed_forward_norm, x)
    out = self.feed_forward.FProp(theta.feed_forward, normed, paddings, ids)
    out.y = self._Add(x, out.y)
    return out

  def _Add(self, x, branch):
    return annotate(x + randomness.dropout(self, branch, self.params.dropout, 'blm'), 'blm')


class Stack(weights.Layer):
  """Blocks one after another, and a norm at the end."""

  @classmethod
  def Params(cls):
    p = super().Params()
    p.Define('blocks', [], 'Params of the blocks, in order.')
    p.Define('norm', Norm.Params(), 'Params of the final norm.')
    return p

  def __init__(self, params):
    super().__init__(params)
    self.CreateChildren('blocks', self.params.blocks)
    self.CreateChild('norm', self.params.norm)

  def FProp(self, theta, x, context):
    """Computes the stack.

    Args:
      theta: weights.
      x: [B, L, M].
      context: see `TransformerBlock.FProp`.

    Returns:
      A NestedMap with y [B, L, M]; aux_loss float32 [], the mean over the blocks
      that have one (2006.16668, section 2.2, has one loss for each MoE layer);
      metrics, a dict from the block's number to its metrics; and updates, a dict
      by path.
    """
    aux, metrics, updates = [], {}, {}
    for i, (block, block_theta) in enumerate(zip(self.blocks, theta.blocks)):
      out = block.FProp(block_theta, x, context)
      x = out.y
      updates |= out.updates
      if out.metrics:
        aux.append(out.aux_loss)
        metrics[i] = out.metrics
    return py_utils.NestedMap(
        y=self.norm.FProp(theta.norm, x),
        aux_loss=tf.add_n(aux) / len(aux) if aux else tf.zeros([]),
        metrics=metrics, updates=updates)

  def KeysAndValues(self, theta, encoded):
    """The cross attention's keys and values of every block of a decoder.

    Args:
      theta: weights.
      encoded: [B, T, M].

    Returns:
      A list of NestedMaps of k and v [B, T, N, K].
    """
    return [py_utils.NestedMap(zip('kv', block.cross_attention.KeysAndValues(
        t.cross_attention, encoded))) for block, t in zip(self.blocks, theta.blocks)]

  def ExtendStep(self, theta, x, caches, t, cross, cross_mask, ids):
    """Computes the stack for one new position of a decoder.

    Args:
      theta: weights.
      x: [B, 1, M].
      caches: for each block its cache.
      t: int32 [], the new position.
      cross: for each block the encoder's keys and values.
      cross_mask: bool [B, 1, T].
      ids: int32 [B, 1], the tokens at position t.

    Returns:
      [B, 1, M] and the new caches.
    """
    new = []
    for block, block_theta, cache, kv in zip(self.blocks, theta.blocks, caches, cross):
      context = py_utils.NestedMap(cross=kv, cross_mask=cross_mask, ids=ids)
      x, cache = block.ExtendStep(block_theta, x, cache, t, context)
      new.append(cache)
    return self.norm.FProp(theta.norm, x), new
