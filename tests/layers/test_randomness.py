"""The hash behind dropout and the second expert: statistics, and the same numbers everywhere.

All draws here are functions of fixed keys, so nothing is left to chance: five
standard deviations are what a good hash keeps within for one key in two million.
"""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from gshard_tf.layers import feed_forward
from gshard_tf.layers import randomness
from tests.layers import layer as layers

_SIGMAS = 5.
_SHAPES = [(512, 512), (8, 64, 512), (16, 8, 32, 64)]  # 2^18 numbers each
_KEYS = [(0, 0), (1, 0), (0, 1), (7, 10**9 + 7), (2**32 - 1, 2**31)]


def draw(key, shape):
  return randomness.uniform_hash(tf.constant(key, tf.uint32), shape).numpy()


@pytest.mark.parametrize('shape, key', list(itertools.product(_SHAPES, _KEYS)))
def test_statistics(shape, key):
  u = draw(key, shape).astype(np.float64)
  n = u.size
  assert u.shape == shape
  assert 0. <= u.min() and u.max() < 1.
  assert u.mean() == pytest.approx(1 / 2, abs=_SIGMAS * np.sqrt(1 / 12 / n))
  # The variance of the squared distance from 1/2: 1/80 - 1/144.
  assert ((u - .5)**2).mean() == pytest.approx(1 / 12, abs=_SIGMAS * np.sqrt(1 / 180 / n))
  counts = np.bincount((u * 256).astype(int).ravel(), minlength=256)
  chi_squared = ((counts - n / 256)**2 / (n / 256)).sum()
  assert chi_squared == pytest.approx(255, abs=_SIGMAS * np.sqrt(2 * 255))
  low = np.bincount((u * 2**24).astype(int).ravel() % 256, minlength=256)  # the least bits
  assert ((low - n / 256)**2 / (n / 256)).sum() == pytest.approx(255, abs=_SIGMAS * np.sqrt(2 * 255))


@pytest.mark.parametrize('key', _KEYS)
def test_normal_numbers_have_the_moments_of_the_standard_normal(key):
  x = randomness.to_normal(tf.constant(draw(key, _SHAPES[0]))).numpy().astype(np.float64)
  assert np.isfinite(x).all()
  for power, mean, variance in ((1, 0., 1.), (2, 1., 2.), (3, 0., 15.), (4, 3., 96.)):
    assert (x**power).mean() == pytest.approx(mean, abs=_SIGMAS * np.sqrt(variance / x.size))
  extremes = randomness.to_normal(tf.constant([0., 1. - 2.**-24])).numpy()
  np.testing.assert_allclose(extremes, [-5.42, 5.42], atol=.01)  # quantiles of 2^-25


def assert_uncorrelated(a, b):
  # Of n products of independent numbers of variance 1/12 each.
  sigma = 1 / 12 / np.sqrt(a.size)
  assert ((a - .5) * (b - .5)).mean() == pytest.approx(0., abs=_SIGMAS * sigma)


@pytest.mark.parametrize('shape', _SHAPES)
@pytest.mark.parametrize('lag', [1, 2, 4])
def test_neighbours_along_every_dimension_are_uncorrelated(shape, lag):
  u = draw((3, 5), shape).astype(np.float64)
  for dim in range(len(shape)):
    line = np.moveaxis(u, dim, 0)
    assert_uncorrelated(line[:-lag], line[lag:])


@pytest.mark.parametrize('a, b', list(itertools.combinations(
    [(0, 0), (1, 0), (0, 1), (1, 1), (2, 0), (5, 9), (9, 5)], 2)))
def test_different_keys_are_uncorrelated(a, b):
  assert_uncorrelated(draw(a, (512, 512)).astype(np.float64), draw(b, (512, 512)))


@pytest.mark.parametrize('a, b', [((4, 7), (5, 7)), ((4, 7), (4, 6)), ((4, 7), (7, 4)), ((0, 0), (64, 0))])
def test_no_row_comes_back_under_another_key(a, b):
  # A step must not draw the rows of the step before it in another order.
  rows = [set(map(bytes, draw(key, (128, 32)))) for key in (a, b)]
  assert [len(r) for r in rows] == [128, 128]  # nor one row twice
  assert not rows[0] & rows[1]


def test_the_index_of_a_row_counts_in_row_major_order():
  np.testing.assert_array_equal(draw((1, 2), (4, 6, 10)).reshape(24, 10), draw((1, 2), (24, 10)))


def test_same_numbers_eager_compiled_and_in_a_graph():
  key, shape = (11, 12), (5, 3, 17)
  want = draw(key, shape)
  for jit in (False, True):
    compiled = tf.function(lambda k: randomness.uniform_hash(k, shape), jit_compile=jit)
    np.testing.assert_array_equal(compiled(tf.constant(key, tf.uint32)), want)
  with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    u = randomness.uniform_hash(tf.constant(key, tf.uint32), shape)
    np.testing.assert_array_equal(session.run(u), want)


@pytest.fixture(scope='module')
def layer():
  return layers.make(feed_forward.FeedForward.Params().Set(model_dim=1, hidden_dim=1))


def test_a_layer_draws_by_step_and_seed_and_anew_each_time(layer):
  def pair(step, seed):
    with layers.training(step, seed):
      return [randomness.uniform(layer, [4, 64], 'gs').numpy() for _ in range(2)]
  first, second = pair(3, 8)
  np.testing.assert_array_equal(pair(3, 8), [first, second])
  others = [second, *pair(4, 8), *pair(3, 9)]
  for other in others:
    # Multiples of 2^-24: one of 256 pairs coincides in 1 of 65,000 cases.
    assert (first == other).mean() < .02


@pytest.mark.parametrize('rate', [.1, .5, .9])
def test_dropout_keeps_the_expectation(layer, rate):
  with layers.training():
    y = randomness.dropout(layer, tf.ones([512, 512]), rate, 'blm').numpy()
  np.testing.assert_allclose(np.unique(y), [0., 1. / (1. - rate)], rtol=1e-6)
  sigma = np.sqrt(rate / (1. - rate) / y.size)
  assert y.astype(np.float64).mean() == pytest.approx(1., abs=_SIGMAS * sigma)


def test_dropout_drops_the_gradient_where_it_drops_the_value(layer):
  x = tf.ones([8, 64])
  with layers.training(), tf.GradientTape() as tape:
    tape.watch(x)
    y = randomness.dropout(layer, x, .5, 'blm')
  np.testing.assert_array_equal(tape.gradient(y, x), y)


def test_dropout_is_nothing_at_evaluation_and_at_rate_zero(layer):
  x = tf.ones([8, 64])
  with layers.evaluation():
    assert randomness.dropout(layer, x, .5, 'blm') is x
  with layers.training():
    assert randomness.dropout(layer, x, 0., 'blm') is x
