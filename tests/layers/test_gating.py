"""Top-2 gating against a loop written from Algorithm 1 of arXiv 2006.16668.

Dimensions: G groups, S tokens in a group, E experts, C capacity.
"""

import math

from hypothesis import assume, given, settings, strategies as st
import numpy as np
import pytest
import tensorflow as tf

from gshard_tf.layers import gating


def top2_loop(logits, nonpadding, capacity, uniform):
  """Algorithm 1 token by token in float64, with E in place of its 1/E (line 13).

  Returns:
    slot int [G, S, 2], gate [G, S, 2], aux_loss, and the least distance of any
    decision (the first and second expert, whether the second is kept) from
    falling the other way.
  """
  groups, size, experts = logits.shape
  slot, gate = np.full((groups, size, 2), -1), np.zeros((groups, size, 2))
  aux, margin = [], math.inf
  for g in range(groups):
    tokens = [s for s in range(size) if nonpadding[g, s]]
    count, mean, top = [0] * experts, np.zeros(experts), {}
    for s in tokens:
      p = np.exp(logits[g, s].astype(np.float64) - logits[g, s].max())
      p /= p.sum()
      mean += p / len(tokens)
      order = sorted(range(experts), key=lambda e: -p[e])
      ranked = p[order]
      margin = min(margin, *(ranked[:-1] - ranked[1:])[:2])
      total = ranked[0] + ranked[1]
      top[s] = order[0], order[1], ranked[0] / total, ranked[1] / total
    for s in tokens:
      expert, _, weight, _ = top[s]
      if count[expert] < capacity:
        slot[g, s, 0], gate[g, s, 0] = expert * capacity + count[expert], weight
      count[expert] += 1
    share = np.array(count) / max(len(tokens), 1)
    aux.append(experts * float(share @ mean))
    for s in tokens:
      _, expert, _, weight = top[s]
      if uniform is not None:
        margin = min(margin, abs(2 * weight - uniform[g, s]))
        if 2 * weight <= uniform[g, s]:
          continue
      if count[expert] < capacity:
        slot[g, s, 1], gate[g, s, 1] = expert * capacity + count[expert], weight
      count[expert] += 1
  return slot, gate, np.mean(aux), margin


@st.composite
def problems(draw):
  """Logits, nonpadding, capacity and uniforms (or None) of all sizes."""
  groups, size, experts = (draw(st.integers(*span)) for span in ((1, 3), (1, 12), (2, 6)))
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  scale = draw(st.sampled_from([0.1, 1., 5.]))
  logits = (scale * rng.standard_normal((groups, size, experts))).astype(np.float32)
  # A shared preference makes experts overflow.
  logits += (draw(st.sampled_from([0., 2.])) * rng.standard_normal(experts)).astype(np.float32)
  nonpadding = rng.random((groups, size)) >= draw(st.sampled_from([0., 0.3, 1.]))
  uniform = rng.random((groups, size), np.float32) if draw(st.booleans()) else None
  return logits, nonpadding.astype(np.float32), draw(st.integers(1, size)), uniform


def route(logits, nonpadding, capacity, uniform):
  routing = gating.top2(tf.constant(logits, tf.float32), tf.constant(nonpadding), capacity, uniform)
  return routing._replace(slot=routing.slot.numpy(), gate=routing.gate.numpy(),
                          aux_loss=float(routing.aux_loss))


@settings(max_examples=80, deadline=None)
@given(problems())
def test_top2_equals_the_loop(problem):
  slot, gate, aux, margin = top2_loop(*problem)
  assume(margin > 1e-5)  # else float32 may decide otherwise
  got = route(*problem)
  np.testing.assert_array_equal(got.slot, slot)
  # A softmax over 6 terms and one division: a few ulps of float32 (6e-8); the
  # loss sums 12 of them, times E.
  np.testing.assert_allclose(got.gate, gate, atol=1e-6)
  np.testing.assert_allclose(got.aux_loss, aux, rtol=1e-5, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(problems())
def test_routing_is_a_partial_permutation(problem):
  logits, nonpadding, capacity, _ = problem
  got = route(*problem)
  experts = logits.shape[-1]
  assert (got.num_experts, got.capacity) == (experts, capacity)
  assert got.slot.min() >= -1 and got.slot.max() < experts * capacity
  for group in got.slot:
    used = group[group >= 0]
    assert len(set(used)) == len(used)  # no slot twice
    for expert in range(experts):  # places are taken from the first on
      places = sorted(used[used // capacity == expert] % capacity)
      assert places == list(range(len(places)))
  assert (got.slot[nonpadding == 0] == -1).all()
  assert (got.gate[got.slot < 0] == 0).all()
  kept = (got.slot >= 0).all(-1)
  np.testing.assert_allclose(got.gate[kept].sum(-1), 1., atol=1e-6)  # renormalised


@settings(max_examples=30, deadline=None)
@given(problems())
def test_with_room_for_all_every_token_visits_two_experts(problem):
  logits, nonpadding, _, _ = problem
  size = logits.shape[1]
  got = route(1000. * logits, nonpadding, size, None)  # gates underflow to 0
  real = nonpadding == 1
  assert (got.slot[real] >= 0).all()
  first, second = np.moveaxis(got.slot[real] // size, -1, 0)
  assert (first != second).all()


def test_first_choices_come_before_second_choices():
  # Token 0 likes expert 1 second; tokens 1 and 2 like it first and fill it.
  logits = np.array([[[2., 1., 0.], [0., 2., 1.], [0., 2., 1.]]])
  got = route(logits, np.ones((1, 3), np.float32), 2, None)
  np.testing.assert_array_equal(got.slot[0], [[0, -1], [2, 4], [3, 5]])
  assert got.gate[0, 0, 0] < 1.  # renormalised before the second was dropped


@pytest.mark.parametrize('experts', [2, 5, 8])
def test_aux_loss_is_one_at_perfect_balance_and_e_at_collapse(experts):
  size = 3 * experts
  favourite = np.arange(size) % experts
  balanced = 3. * np.eye(experts)[favourite][None]
  ones = np.ones((1, size), np.float32)
  assert route(balanced, ones, size, None).aux_loss == pytest.approx(1., rel=1e-5)
  collapsed = 50. * np.eye(experts)[np.zeros(size, int)][None]  # exp(-50) elsewhere
  assert route(collapsed, ones, size, None).aux_loss == pytest.approx(experts, rel=1e-5)


def test_aux_loss_does_not_see_padding():
  rng = np.random.default_rng(0)
  logits = rng.standard_normal((2, 8, 4))
  nonpadding = np.repeat([[1., 1., 1., 1., 1., 0., 0., 0.]], 2, 0).astype(np.float32)
  want = route(logits[:, :5], nonpadding[:, :5], 5, None).aux_loss
  logits[:, 5:] = 10.
  assert route(logits, nonpadding, 5, None).aux_loss == pytest.approx(want, rel=1e-5)


def test_gradient_of_the_aux_loss_spreads_the_load():
  # More likely experts are more loaded, so a step downhill evens them out.
  bias = tf.constant([1.5, 0.5, 0., -0.5])
  noise = np.random.default_rng(0).standard_normal((1, 64, 4)).astype(np.float32)
  with tf.GradientTape() as tape:
    tape.watch(bias)
    loss = gating.top2(bias + noise, tf.ones([1, 64]), 64, None).aux_loss
  gradient = tape.gradient(loss, bias).numpy()
  assert gradient[0] == gradient.max() > 0
  assert gradient[3] < 0


@given(st.integers(1, 300), st.integers(2, 64), st.floats(.1, 8.), st.integers(1, 8))
def test_expert_capacity(size, experts, factor, floor):
  capacity = gating.expert_capacity(size, experts, factor, floor)
  assert 1 <= capacity <= size
  assert capacity >= min(size, floor)
  assert capacity == size or capacity * experts >= factor * size  # room as promised
  # No place more than that needs.
  assert capacity <= floor or (capacity - 1) * experts < factor * size
