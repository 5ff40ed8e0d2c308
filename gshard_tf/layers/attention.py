"""Multi-head attention: whole sequences, and one step with a cache.

Dimensions: B rows, L queries, T keys, M model, N heads, K size of a head.
"""

import math

from lingvo.core import py_utils
import tensorflow as tf

from gshard_tf.layers import weights
from gshard_tf.xla_sharding import annotate

_NEGATIVE = -1e9  # a masked score; finite, so that a row without keys stays so


def relative_bucket(distance: tf.Tensor, bidirectional: bool, num_buckets: int,
                    max_distance: int) -> tf.Tensor:
  """Buckets of relative positions (T5, 1910.10683, section 2.1).

  Half of the buckets hold one distance each, the others grow logarithmically up
  to `max_distance`, beyond which all share the last one.

  Args:
    distance: int32, position of the key minus position of the query.
    bidirectional: whether keys may lie behind the query; they then have half of
      the buckets. Otherwise they share bucket 0.
    num_buckets: how many buckets.
    max_distance: where the last bucket begins.

  Returns:
    int32 in [0, num_buckets), of the shape of `distance`.
  """
  offset = tf.zeros_like(distance)
  if bidirectional:
    num_buckets //= 2
    offset = tf.cast(distance > 0, tf.int32) * num_buckets
    distance = tf.abs(distance)
  else:
    distance = tf.maximum(-distance, 0)
  exact = num_buckets // 2
  ratio = tf.math.log(tf.cast(tf.maximum(distance, 1), tf.float32) / exact)
  far = exact + tf.cast(ratio / math.log(max_distance / exact) * (num_buckets - exact), tf.int32)
  bucket = tf.where(distance < exact, distance, tf.minimum(far, num_buckets - 1))
  return offset + bucket


class MultiHeadAttention(weights.Layer):
  """Scaled dot-product attention with several heads (1706.03762, section 3.2)."""

  @classmethod
  def Params(cls):
    p = super().Params()
    p.Define('model_dim', 0, 'M.')
    p.Define('num_heads', 0, 'N.')
    p.Define('head_dim', 0, 'K.')
    p.Define('causal', False, 'Whether a query sees only keys up to its own position.')
    p.Define('relative_buckets', 0,
             'Buckets of the relative position bias; 0 for none (cross attention).')
    p.Define('relative_max_distance', 128, 'Where the last bucket begins.')
    return p

  def __init__(self, params):
    super().__init__(params)
    p = self.params
    exact = p.relative_buckets // (2 if p.causal else 4)  # buckets of one distance each
    if p.relative_buckets and not 1 <= exact < p.relative_max_distance:
      raise ValueError(
          f'{self.path}: relative_buckets={p.relative_buckets} makes {exact} buckets of one '
          f'distance each; they must be 1 at least and fewer than relative_max_distance='
          f'{p.relative_max_distance}')
    proj = (p.model_dim, p.num_heads, p.head_dim)
    for name in ('wq', 'wk', 'wv'):
      self.CreateWeight(name, 'mnk', proj, weights.Init.fan_in(p.model_dim))
    self.CreateWeight('wo', 'nkm', proj[1:] + proj[:1],
                      weights.Init.fan_in(p.num_heads * p.head_dim))
    if p.relative_buckets:
      self.CreateWeight('relative_bias', 'nr', (p.num_heads, p.relative_buckets),
                        weights.Init.constant(0.))

  def FProp(self, theta, x, source, mask):
    """Attends from every position of `x` to `source`.

    Args:
      theta: weights; wq, wk, wv [M, N, K], wo [N, K, M], relative_bias [N, R].
      x: [B, L, M], the queries.
      source: [B, T, M], where keys and values come from; `x` itself for self
        attention.
      mask: bool [B, L, T], which keys a query may see; causality is added here.

    Returns:
      [B, L, M].
    """
    p = self.params
    q = annotate(tf.einsum('blm,mnk->blnk', x, tf.cast(theta.wq, x.dtype)), 'blnk')
    k, v = self.KeysAndValues(theta, source)
    queries, keys = tf.range(x.shape[1])[:, None], tf.range(source.shape[1])[None]
    if p.causal:
      mask = mask & (keys <= queries)
    return self._Attend(theta, q, k, v, mask, self._Bias(theta, keys - queries))

  def KeysAndValues(self, theta, source):
    """Projects `source` [B, T, M] to keys and values, each [B, T, N, K]."""
    return (annotate(tf.einsum('btm,mnk->btnk', source, tf.cast(theta.wk, source.dtype)), 'blnk'),
            annotate(tf.einsum('btm,mnk->btnk', source, tf.cast(theta.wv, source.dtype)), 'blnk'))

  def ExtendStep(self, theta, x, cache, t):
    """Attends from one new position to all positions so far.

    Args:
      theta: weights.
      x: [B, 1, M], the new position.
      cache: a NestedMap of k and v [B, T, N, K], filled before position t.
      t: int32 [], the new position.

    Returns:
      [B, 1, M], and the cache with position t filled.
    """
    q = annotate(tf.einsum('blm,mnk->blnk', x, tf.cast(theta.wq, x.dtype)), 'blnk')
    k, v = self.KeysAndValues(theta, x)
    keys = tf.range(cache.k.shape[1])
    new = tf.equal(keys, t)[None, :, None, None]
    cache = py_utils.NestedMap(k=annotate(tf.where(new, k, cache.k), 'blnk'),
                               v=annotate(tf.where(new, v, cache.v), 'blnk'))
    mask = tf.tile((keys <= t)[None, None], [x.shape[0], 1, 1])  # [B, 1, T]
    bias = self._Bias(theta, (keys - t)[None])
    return self._Attend(theta, q, cache.k, cache.v, mask, bias), cache

  def Query(self, theta, x, keys_and_values, mask):
    """Attends from `x` to keys and values that were projected before.

    Args:
      theta: weights.
      x: [B, L, M].
      keys_and_values: a NestedMap of k and v [B, T, N, K].
      mask: bool [B, L, T].

    Returns:
      [B, L, M].
    """
    q = annotate(tf.einsum('blm,mnk->blnk', x, tf.cast(theta.wq, x.dtype)), 'blnk')
    return self._Attend(theta, q, keys_and_values.k, keys_and_values.v, mask, None)

  def _Bias(self, theta, distance):
    """distance int32 [L, T] -> [N, L, T], or None."""
    p = self.params
    if not p.relative_buckets:
      return None
    bucket = relative_bucket(distance, not p.causal, p.relative_buckets,
                             p.relative_max_distance)
    # A product rather than a gather: its gradient is a product too, which the
    # partitioner splits, where that of a gather would be a scatter.
    return tf.einsum('nr,ltr->nlt', theta.relative_bias,
                     tf.one_hot(bucket, p.relative_buckets, dtype=theta.relative_bias.dtype))

  def _Attend(self, theta, q, k, v, mask, bias):
    scores = tf.einsum('blnk,btnk->bnlt', q, k) * self.params.head_dim ** -.5
    scores = tf.cast(scores, tf.float32)
    if bias is not None:
      scores += tf.cast(bias, tf.float32)
    scores = tf.where(mask[:, None], scores, _NEGATIVE)
    probability = tf.cast(tf.nn.softmax(annotate(scores, 'bnlt')), v.dtype)
    y = annotate(tf.einsum('bnlt,btnk->blnk', probability, v), 'blnk')
    return annotate(tf.einsum('blnk,nkm->blm', y, tf.cast(theta.wo, y.dtype)), 'blm')
