"""Transformer blocks, and a stack of blocks from a list of Params.

Dimensions: B rows, L positions, T positions of the encoder, M model.
"""

import functools

from lingvo.core import py_utils
import numpy as np
import tensorflow as tf

from gshard_tf.layers import attention
from gshard_tf.layers import feed_forward
from gshard_tf.layers import randomness
from gshard_tf.layers import repeat
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
        in the vocabulary), self_mask bool [B, L, L], for a decoder encoded
        [B, T, M] and cross_mask bool [B, L, T], and language float32 [B, L, N] to
        measure the experts' load by language.

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
    return self._FeedForward(theta, x, context.paddings, context.ids, context.get('language'))

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

  def _FeedForward(self, theta, x, paddings, ids, language=None):
    normed = self.feed_forward_norm.FProp(theta.feed_forward_norm, x)
    out = self.feed_forward.FProp(theta.feed_forward, normed, paddings, ids, language)
    out.y = self._Add(x, out.y)
    out.updates = py_utils.NestedMap(feed_forward=out.updates)
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
    p.Define('remat', 'none',
             'block: the backward pass computes each block once more, and only the inputs of '
             'blocks are held for it. none: all is held.')
    p.Define('period', 0,
             'Lowered programs run the blocks by a loop of as many at a time: their Params '
             'repeat after `period` blocks. The weights of a loop are stacked and its blocks '
             'recomputed (remat is `block`). 0: no loop.')
    return p

  def __init__(self, params):
    super().__init__(params)
    p = self.params
    if p.remat not in ('none', 'block'):
      raise ValueError(f'{self.path}: remat is {p.remat!r}; choose none or block')
    if p.period and p.remat != 'block':
      raise ValueError(f'{self.path}: a loop over blocks recomputes them; set remat to block, or '
                       f'period from {p.period} to 0')
    if p.period and (len(p.blocks) % p.period or any(
        a != b for a, b in zip(p.blocks, p.blocks[p.period:]))):
      raise ValueError(f'{self.path}: {len(p.blocks)} blocks do not repeat after period='
                       f'{p.period}; set period to 0, or to a divisor after which they do')
    self.CreateChildren('blocks', p.blocks)
    self.CreateChild('norm', p.norm)

  def StackedSpecs(self, specs):
    """The specs, of blocks in a loop stacked: one for each block of a period."""
    period = self.params.period
    if 0 < period < len(self.blocks):
      specs.blocks = [weights.stack_specs(f'blocks_{i}::{period}', specs.blocks[i::period])
                      for i in range(period)]
    return specs

  def FProp(self, theta, x, context):
    """Computes the stack.

    Args:
      theta: weights; blocks may be stacked, see `StackedSpecs`.
      x: [B, L, M].
      context: see `TransformerBlock.FProp`.

    Returns:
      A NestedMap with y [B, L, M]; aux_loss float32 [], the mean over the blocks
      that have one (2006.16668, section 2.2, has one loss for each MoE layer);
      metrics, a dict from the block's number to its metrics; and updates, a
      NestedMap that is a part of `theta`.
    """
    seed, run = py_utils.GetStepSeed(), _Run(self, context)
    if len(theta.blocks) < len(self.blocks):
      x, results = run.Loop(theta.blocks, x, seed)
    else:
      x, results = run.Unrolled(theta.blocks, x, seed)
    py_utils.ResetStepSeed(seed + len(self.blocks) * _DRAWS)
    aux = [r.aux_loss for r in results if r.metrics]
    return py_utils.NestedMap(
        y=self.norm.FProp(theta.norm, x),
        aux_loss=tf.add_n(aux) / len(aux) if aux else tf.zeros([]),
        metrics={i: r.metrics for i, r in enumerate(results) if r.metrics},
        updates=py_utils.NestedMap(blocks=self._Updates(theta, results)))

  def KeysAndValues(self, theta, encoded):
    """The cross attention's keys and values of every block of a decoder.

    Args:
      theta: weights.
      encoded: [B, T, M].

    Returns:
      A list of NestedMaps of k and v [B, T, N, K].
    """
    return [py_utils.NestedMap(zip('kv', block.cross_attention.KeysAndValues(
        t.cross_attention, encoded))) for block, t in zip(self.blocks, self._OneByOne(theta))]

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
    for block, block_theta, cache, kv in zip(self.blocks, self._OneByOne(theta), caches, cross):
      context = py_utils.NestedMap(cross=kv, cross_mask=cross_mask, ids=ids)
      x, cache = block.ExtendStep(block_theta, x, cache, t, context)
      new.append(cache)
    return self.norm.FProp(theta.norm, x), new

  def _Updates(self, theta, results):
    """The updates of the blocks, stacked where `theta` is."""
    updates, own = [r.updates for r in results], len(theta.blocks)
    if own == len(updates):
      return updates
    return [updates[i].Pack([tf.stack(u) for u in zip(*(u.Flatten() for u in updates[i::own]))])
            for i in range(own)]

  def _OneByOne(self, theta):
    """For each block its own weights, also where they are stacked."""
    if len(theta.blocks) == len(self.blocks):
      return theta.blocks
    period = self.params.period
    return [theta.blocks[i % period].Transform(lambda w, i=i: w[i // period])
            for i in range(len(self.blocks))]


# Block i draws its random numbers from step seeds that begin at i * _DRAWS, more
# than a block takes, so that they are the same in a loop and without.
_DRAWS = 64


class _Run:
  """The blocks of a stack, applied with and without a loop and recomputation."""

  def __init__(self, stack, context):
    self._blocks, self._params = stack.blocks, stack.params
    self._specs = [weights.weight_specs(b) for b in stack.blocks]
    self._context = context
    self._shared = [context.encoded] if 'encoded' in context else []
    self._results = {}  # by block: the structure of what it returns beside y

  def Unrolled(self, theta, x, seed):
    """theta of each block, x [B, L, M] -> [B, L, M], for each block its results."""
    # What keeps XLA from undoing the recomputation is XLA's own operation, which
    # Lingvo's graph-mode trainer does not have; it holds everything.
    remat = self._params.remat == 'block' and tf.inside_function()
    shared, results = len(self._shared), []
    for i, block_theta in enumerate(theta):
      run = lambda x, *a, i=i: self._Block(i, seed + i * _DRAWS, x, a[:shared], a[shared:])
      inputs = x, *self._shared, *block_theta.Flatten()
      x, extras = repeat.recompute(run, *inputs) if remat else run(*inputs)
      results.append(self._results[i].Pack(extras))
    return x, results

  def Loop(self, theta, x, seed):
    """As `Unrolled`, theta stacked for each block of a period."""
    period = self._params.period

    def body(i, x, shared, tensors):
      x, shared = annotate(x, 'blm'), [annotate(s, 'blm') for s in shared]
      extras, tensors = [], iter(tensors)
      for j in range(period):
        start = seed + tf.cast(i * period + j, seed.dtype) * _DRAWS
        own = [w.annotate(next(tensors)) for w in self._specs[j].Flatten()]
        x, new = self._Block(j, start, x, shared, own)
        extras += new
      return x, extras

    x, extras = repeat.repeat(body, len(self._blocks) // period, x, self._shared,
                              [w for t in theta for w in t.Flatten()])
    results = []
    for i in range(len(self._blocks) // period):
      row = iter([e[i] for e in extras])
      for j in range(period):
        own = self._results[j]
        results.append(own.Pack([next(row) for _ in own.Flatten()]))
    return x, results

  def _Block(self, i, seed, x, shared, flat):
    """Block i on flat weights -> [B, L, M], a flat list of its results."""
    py_utils.ResetStepSeed(seed)
    context = self._context.copy()
    if shared:
      context.encoded = shared[0]
    out = self._blocks[i].FProp(self._specs[i].Pack(list(flat)), x, context)
    y = out.pop('y')
    self._results[i] = out
    return y, out.Flatten()
