"""Attention against float64 loops, and step by step against whole sequences.

Dimensions: B rows, L queries, T keys, M model, N heads, K size of a head.
"""

from fractions import Fraction

from hypothesis import given, settings, strategies as st
from lingvo.core import py_utils
import numpy as np
import pytest
import tensorflow as tf

from gshard_tf.layers import attention
from tests.layers import layer as layers

_B, _L, _T, _M, _N, _K = 2, 6, 5, 6, 2, 4


def make(seed=0, **kwargs):
  layer = layers.make(attention.MultiHeadAttention.Params().Set(
      model_dim=_M, num_heads=_N, head_dim=_K, **kwargs))
  return layer, layers.draw(layer, seed)


def bucket_loop(distance, bidirectional, num_buckets, max_distance):
  """The published formula for one distance, with an exact logarithm.

  Raffel et al., 1910.10683, code of `_relative_position_bucket`: with
  n the distance into the past, floor(log(n / exact) / log(max / exact) * rest)
  is the largest k with (n / exact) ** rest >= (max / exact) ** k.
  """
  offset = 0
  if bidirectional:
    num_buckets //= 2
    offset = num_buckets if distance > 0 else 0
    n = abs(distance)
  else:
    n = max(-distance, 0)
  exact = num_buckets // 2
  if n < exact:
    return offset + n
  rest, k = num_buckets - exact, 0
  while k < rest - 1 and Fraction(n, exact)**rest >= Fraction(max_distance, exact)**(k + 1):
    k += 1
  return offset + exact + k


# Where a power falls on a whole distance, float32 may land in the bucket before:
# sizes at which it does not, T5's own (32, 128) among them.
@pytest.mark.parametrize('num_buckets, max_distance', [(32, 128), (16, 128), (8, 20), (12, 64)])
@pytest.mark.parametrize('bidirectional', [False, True])
def test_relative_bucket(bidirectional, num_buckets, max_distance):
  distance = np.arange(-3 * max_distance, 3 * max_distance + 1)
  got = attention.relative_bucket(tf.constant(distance, tf.int32), bidirectional, num_buckets, max_distance)
  want = [bucket_loop(int(d), bidirectional, num_buckets, max_distance) for d in distance]
  np.testing.assert_array_equal(got, want)
  assert set(want) == set(range(num_buckets)) - ({num_buckets // 2} if bidirectional else set())


def attention_loop(theta, x, source, mask, causal, buckets, max_distance):
  """One query, head and key at a time, in float64; keys that are masked are left out."""
  y = np.zeros_like(x)
  q, k, v = (np.einsum('blm,mnk->blnk', a, w)
             for a, w in ((x, theta.wq), (source, theta.wk), (source, theta.wv)))
  for b, l, n in np.ndindex(len(x), x.shape[1], _N):
    visible = [t for t in range(source.shape[1]) if mask[b, l, t] and not (causal and t > l)]
    scores = []
    for t in visible:
      score = q[b, l, n] @ k[b, t, n] / np.sqrt(_K)
      if buckets:
        score += theta.relative_bias[n, bucket_loop(t - l, not causal, buckets, max_distance)]
      scores.append(score)
    probability = np.exp(np.array(scores) - max(scores))
    probability /= probability.sum()
    y[b, l] += probability @ v[b, visible, n] @ theta.wo[n]
  return y


def segment_mask(rng, size):
  segments = np.sort(rng.integers(0, 3, (_B, size)), -1)
  return segments[:, :, None] == segments[:, None]


@settings(max_examples=16, deadline=None)
@given(st.booleans(), st.sampled_from([0, 8]), st.integers(0, 2**32 - 1))
def test_self_attention_equals_the_loop(causal, buckets, seed):
  layer, theta = make(seed, causal=causal, relative_buckets=buckets, relative_max_distance=5)
  rng = np.random.default_rng(seed)
  x, mask = layers.normal(rng, _B, _L, _M), segment_mask(rng, _L)
  got = layer.FProp(theta, x, x, tf.constant(mask))
  x = x.numpy().astype(np.float64)
  want = attention_loop(layers.as_float64(theta), x, x, mask, causal, buckets, 5)
  # Sums of at most 8 products of order 1 and a softmax of scores below 20.
  np.testing.assert_allclose(got, want, atol=5e-5)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_cross_attention_equals_the_loop_and_query(seed):
  layer, theta = make(seed)
  rng = np.random.default_rng(seed)
  x, source = layers.normal(rng, _B, _L, _M), layers.normal(rng, _B, _T, _M)
  mask = rng.random((_B, _L, _T)) < .5
  mask[..., 0] = True  # each query sees something
  got = layer.FProp(theta, x, source, tf.constant(mask))
  want = attention_loop(layers.as_float64(theta), *(a.numpy().astype(np.float64) for a in (x, source)),
                        mask, False, 0, 0)
  np.testing.assert_allclose(got, want, atol=5e-5)
  projected = py_utils.NestedMap(zip('kv', layer.KeysAndValues(theta, source)))
  # The same operations on the same numbers.
  np.testing.assert_allclose(layer.Query(theta, x, projected, tf.constant(mask)), got, atol=1e-6)


@pytest.mark.parametrize('buckets', [0, 8])
def test_steps_equal_the_whole_sequence(buckets):
  layer, theta = make(causal=True, relative_buckets=buckets, relative_max_distance=5)
  rng = np.random.default_rng(0)
  x = layers.normal(rng, _B, _L, _M)
  want = layer.FProp(theta, x, x, tf.ones([_B, _L, _L], tf.bool)).numpy()
  # What a cache holds behind the current position must not matter.
  cache = py_utils.NestedMap(k=layers.normal(rng, _B, _L, _N, _K, scale=100.),
                             v=layers.normal(rng, _B, _L, _N, _K, scale=100.))
  for t in range(_L):
    y, cache = layer.ExtendStep(theta, x[:, t:t + 1], cache, tf.constant(t))
    np.testing.assert_allclose(y[:, 0], want[:, t], atol=1e-5, err_msg=f'position {t}')


def test_a_row_without_keys_is_finite():
  layer, theta = make(causal=True, relative_buckets=8)
  x = layers.normal(np.random.default_rng(0), _B, _L, _M)
  mask = np.ones((_B, _L, _L), bool)
  mask[0] = False
  with tf.GradientTape() as tape:
    tape.watch([x, *theta.Flatten()])
    y = layer.FProp(theta, x, x, tf.constant(mask))
  for value in (y, *tape.gradient(y, [x, *theta.Flatten()])):
    assert np.isfinite(value).all()


def test_softmax_in_float32_whatever_the_activations():
  layer, theta = make()
  x = layers.normal(np.random.default_rng(0), _B, _L, _M)
  mask = tf.ones([_B, _L, _L], tf.bool)
  want = layer.FProp(theta, x, x, mask)
  half = theta.Transform(lambda w: tf.cast(w, tf.bfloat16))
  x = tf.cast(x, tf.bfloat16)
  got = layer.FProp(half, x, x, mask)
  assert got.dtype == tf.bfloat16
  # Eight bits of mantissa in each of four products of values of order 1.
  np.testing.assert_allclose(tf.cast(got, tf.float32), want, atol=.15)


@pytest.mark.parametrize('buckets, distance', [(2, 128), (32, 8)])
def test_buckets_that_cannot_be_made_are_refused(buckets, distance):
  params = attention.MultiHeadAttention.Params().Set(
      name='attention', model_dim=8, num_heads=2, head_dim=4, relative_buckets=buckets,
      relative_max_distance=distance)
  with pytest.raises(ValueError, match=f'relative_buckets={buckets} .*={distance}'):
    params.Instantiate()
