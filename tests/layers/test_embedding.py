"""Embedding and cross entropy against float64.

Dimensions: B rows, L positions, V vocabulary, M model.
"""

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest
import tensorflow as tf

from gshard_tf.layers import embedding
from tests.layers import layer as layers


def cross_entropy_loop(logits, labels, smoothing):
  """Smoothed loss, nll and the gradient of the summed loss, a token at a time."""
  loss, nll = np.zeros(labels.shape), np.zeros(labels.shape)
  gradient = np.zeros(logits.shape)
  vocab = logits.shape[-1]
  for at in np.ndindex(*labels.shape):
    x = logits[at].astype(np.float64)
    log_p = x - x.max() - np.log(np.exp(x - x.max()).sum())
    target = np.full(vocab, smoothing / vocab)
    target[labels[at]] += 1. - smoothing
    loss[at], nll[at] = -target @ log_p, -log_p[labels[at]]
    gradient[at] = np.exp(log_p) - target
  return loss, nll, gradient


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(2, 40), st.sampled_from([0., .1, 1.]),
       st.sampled_from([1., 30., 1e4]), st.integers(0, 2**32 - 1))
def test_cross_entropy_equals_float64(rows, length, vocab, smoothing, scale, seed):
  rng = np.random.default_rng(seed)
  logits = (scale * rng.standard_normal((rows, length, vocab))).astype(np.float32)
  labels = rng.integers(0, vocab, (rows, length)).astype(np.int32)
  x = tf.constant(logits)
  with tf.GradientTape() as tape:
    tape.watch(x)
    loss, nll = embedding.cross_entropy(x, tf.constant(labels), smoothing)
  want_loss, want_nll, want_gradient = cross_entropy_loop(logits, labels, smoothing)
  # Differences of numbers of order `scale`: some ulps (6e-8) of the largest.
  atol = 1e-6 * (1. + np.abs(logits).max())
  np.testing.assert_allclose(loss, want_loss, atol=atol)
  np.testing.assert_allclose(nll, want_nll, atol=atol)
  # exp(x - log Z) has the relative error of what it exponentiates, on at most 1.
  np.testing.assert_allclose(tape.gradient(loss, x), want_gradient, atol=atol)
  if not smoothing:
    np.testing.assert_array_equal(loss, nll)


def test_cross_entropy_of_even_logits_is_the_log_of_the_vocabulary():
  loss, nll = embedding.cross_entropy(tf.fill([1, 2, 50], 7.), tf.constant([[3, 49]]), .1)
  np.testing.assert_allclose(loss, np.log(50.), rtol=1e-6)
  np.testing.assert_allclose(nll, np.log(50.), rtol=1e-6)


@pytest.fixture(scope='module')
def table():
  layer = layers.make(embedding.Embedding.Params().Set(vocab_size=9, model_dim=16))
  return layer, layers.draw(layer, 0)


def test_lookup_is_rows_scaled_by_the_root_of_the_dimension(table):
  layer, theta = table
  ids = np.array([[0, 8, 3], [3, 3, 1]], np.int32)
  np.testing.assert_allclose(layer.Lookup(theta, tf.constant(ids)), 4. * theta.table.numpy()[ids], rtol=1e-6)


def test_logits_share_the_table(table):
  layer, theta = table
  x = np.random.default_rng(0).standard_normal((2, 3, 16), np.float32)
  want = np.einsum('blm,vm->blv', *(a.astype(np.float64) for a in (x, theta.table.numpy())))
  np.testing.assert_allclose(layer.Logits(theta, tf.constant(x)), want, atol=1e-5)


def test_initial_table_gives_embeddings_of_variance_one():
  layer = layers.make(embedding.Embedding.Params().Set(vocab_size=4, model_dim=64))
  assert layer._weight_specs['table'].init.stddev == pytest.approx(64**-.5)
