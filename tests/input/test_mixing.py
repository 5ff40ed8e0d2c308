"""Tests of gshard_tf.input.mixing."""

import math

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from gshard_tf.input import mixing

COUNTS = st.lists(st.integers(1, 10**9), min_size=1, max_size=100)
TEMPERATURES = st.floats(0.5, 100)


@given(COUNTS, TEMPERATURES)
def test_the_weights_are_those_of_the_formula(counts, temperature):
  shares = [(count / sum(counts)) ** (1 / temperature) for count in counts]
  np.testing.assert_allclose(
      mixing.language_weights(counts, temperature),
      [share / sum(shares) for share in shares], rtol=1e-9)


@given(COUNTS)
def test_temperature_one_keeps_the_natural_shares(counts):
  np.testing.assert_allclose(
      mixing.language_weights(counts, 1), np.array(counts) / sum(counts))


@given(COUNTS)
def test_an_infinite_temperature_makes_all_equal(counts):
  np.testing.assert_allclose(
      mixing.language_weights(counts, math.inf), np.full(len(counts), 1 / len(counts)))


@given(COUNTS, TEMPERATURES)
def test_weights_sum_to_one_and_keep_the_order_of_the_counts(counts, temperature):
  weights = mixing.language_weights(counts, temperature)
  assert weights.sum() == pytest.approx(1)
  assert np.all(np.diff(weights[np.argsort(counts)]) >= 0)


def test_a_higher_temperature_gives_more_to_the_small():
  weights = [mixing.language_weights([1000, 10], t)[1] for t in (1, 2, 5, 100)]
  assert weights == sorted(weights) and weights[0] < weights[-1] < 0.5


@pytest.mark.parametrize('temperature', [0, -1, math.nan])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
  with pytest.raises(ValueError, match=f'temperature is {temperature}, not > 0'):
    mixing.language_weights([1, 2], temperature)


@pytest.mark.parametrize('counts', [[], [3, 0], [-1], [[1, 2]]])
def test_counts_that_are_not_positive_are_refused(counts):
  with pytest.raises(ValueError, match='are not all > 0'):
    mixing.language_weights(counts, 5)
