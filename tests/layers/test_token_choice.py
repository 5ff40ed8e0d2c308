"""Gatings of tokens that choose experts, each against a loop written from its paper.

Dimensions: G groups, S tokens in a group, E experts, C capacity, K experts
chosen for a token, D nodes.
"""

import math

from hypothesis import assume, given, settings, strategies as st
import numpy as np
import pytest
import tensorflow as tf

from gshard_tf.layers import gating
from gshard_tf.layers import token_choice
from tests.layers import routings

_MARGIN = 1e-5  # below it a decision may fall the other way in float32


def by_token(problem, choose):
  """Applies `choose` to each token that is not padding: token (g, s) -> experts, gates, margin.

  Returns:
    experts int [G, S, K], gates [G, S, K], and the least margin.
  """
  chosen = {}
  for token in zip(*np.nonzero(problem.nonpadding)):
    chosen[token] = choose(token)
  k = len(next(iter(chosen.values()))[0]) if chosen else 1
  shape = problem.nonpadding.shape + (k,)
  expert, gate, margin = np.full(shape, -1), np.zeros(shape), math.inf
  for token, (experts, gates, least) in chosen.items():
    expert[token], gate[token], margin = experts, gates, min(margin, least)
  assume(chosen and margin > _MARGIN)
  return expert, gate


def check(problem, choices, choose, **kwargs):
  """Compares choices, assigned within the problem's capacity, with a loop."""
  expert, gate = by_token(problem, choose)
  slot = np.array([routings.fill(wishes, problem.capacity) for wishes in expert])
  got = gating.assign(choices, problem.nonpadding, problem.capacity, **kwargs)
  gate = np.where(slot >= 0, gate, 0.)
  if kwargs.get('normalize_kept'):
    gate /= np.maximum(gate.sum(-1, keepdims=True), 1e-30)
  routings.check(got, expert, slot, gate)


@settings(max_examples=80, deadline=None)
@given(problem=routings.problems(), policy=st.sampled_from(token_choice.SECOND_EXPERT),
       before=st.booleans())
def test_top2(problem, policy, before):
  """Algorithm 1 of 2006.16668; for `sampling`, the Gumbel trick of its authors' code."""
  rng, (groups, size, experts) = problem.rng, problem.logits.shape
  uniform = rng.random((groups, size), np.float32)
  draws = rng.random((groups, size, experts), np.float32)

  def choose(token):
    p = routings.softmax(problem.logits[token])
    (first,), margin = routings.best(p, 1)
    scores = problem.logits[token].astype(np.float64)
    if policy == 'sampling':
      scores -= np.log(-np.log(draws[token].astype(np.float64)))
    scores[first] = -np.inf
    (second,), also = routings.best(scores, 1)
    margin = min(margin, also)
    gates = p[[first, second]]
    if before:
      gates /= gates.sum()
    if policy == 'random':
      margin = min(margin, abs(2 * gates[1] - uniform[token]))
      if 2 * gates[1] <= uniform[token]:
        second = -1
    return (first, second), gates, margin

  given_uniform = {'all': None, 'random': uniform, 'sampling': draws}[policy]
  choices = token_choice.top2(tf.constant(problem.logits), policy, given_uniform, normalize=before)
  check(problem, choices, choose, normalize_kept=not before)


def test_first_choices_come_before_second_choices():
  # Token 0 likes expert 1 second; tokens 1 and 2 like it first and fill it.
  logits = tf.constant([[[2., 1., 0.], [0., 2., 1.], [0., 2., 1.]]])
  got = gating.assign(token_choice.top2(logits), tf.ones([1, 3]), 2)
  np.testing.assert_array_equal(got.slot[0], [[0, -1], [2, 4], [3, 5]])
  np.testing.assert_array_equal(got.expert[0], [[0, 1], [1, 2], [1, 2]])  # dropped, but chosen
  assert got.gate[0, 0, 0] < 1.  # renormalised before the second was dropped


@pytest.mark.parametrize('policy', ['all', 'sampling'])
def test_two_experts_are_distinct_where_gates_underflow(policy):
  rng = np.random.default_rng()
  logits = tf.constant(1000. * rng.standard_normal((1, 50, 4)), tf.float32)
  uniform = tf.constant(rng.integers(0, 2, (1, 50, 4)) * .5, tf.float32)  # zeros among them
  choices = token_choice.top2(logits, policy, uniform)
  first, second = np.moveaxis(choices.expert.numpy(), -1, 0)
  assert (first != second).all()


def test_sampling_draws_the_second_expert_from_the_softmax_of_the_others():
  logits = np.log([.5, .3, .15, .05]).astype(np.float32)
  rng, n = np.random.default_rng(0), 20_000
  choices = token_choice.top2(tf.constant(np.tile(logits, (1, n, 1))), 'sampling',
                              tf.constant(rng.random((1, n, 4)), tf.float32))
  share = np.bincount(choices.expert.numpy()[0, :, 1], minlength=4) / n
  want = np.array([0., .6, .3, .1])
  assert (np.abs(share - want) <= 5. * np.sqrt(want * (1. - want) / n)).all()  # 5 sigma


@settings(max_examples=60, deadline=None)
@given(problem=routings.problems(), data=st.data(), normalize=st.booleans())
def test_top_k(problem, data, normalize):
  """Mixtral (2401.04088): a softmax over the k highest logits; else V-MoE and Switch."""
  k = data.draw(st.integers(1, problem.logits.shape[-1]))

  def choose(token):
    logits = problem.logits[token]
    experts, margin = routings.best(logits.astype(np.float64), k)
    gates = routings.softmax(logits[experts]) if normalize else routings.softmax(logits)[experts]
    return experts, gates, margin

  check(problem, token_choice.top_k(tf.constant(problem.logits), k, normalize), choose)


def test_prioritized_tokens_are_kept():
  # V-MoE (2106.05974), section 4.1: with places for half, the surer half is kept.
  logits = np.zeros((1, 8, 2), np.float32)
  logits[0, :, 0] = np.random.default_rng().permutation(8) + 1.
  choices = token_choice.top_k(tf.constant(logits), 1, normalize=False)
  kept = lambda **kwargs: gating.assign(choices, tf.ones([1, 8]), 4, **kwargs).slot.numpy()[0, :, 0] >= 0
  np.testing.assert_array_equal(kept(prioritized=True), logits[0, :, 0] > 4.)
  np.testing.assert_array_equal(kept(), np.arange(8) < 4)


@settings(max_examples=60, deadline=None)
@given(problem=routings.problems(experts=(3, 6)), data=st.data())
def test_noisy_load(problem, data):
  """1701.06538, appendix A, equations 8 and 9."""
  shape = problem.logits.shape
  k = data.draw(st.integers(1, shape[-1] - 1))
  scale = problem.rng.uniform(.1, 2., shape).astype(np.float32)
  noisy = (problem.logits + scale * problem.rng.standard_normal(shape)).astype(np.float32)
  got = token_choice.noisy_load(*map(tf.constant, (problem.logits, scale, noisy)), k).numpy()
  for g, s, e in np.ndindex(shape):
    others = sorted(np.delete(noisy[g, s], e).tolist(), reverse=True)
    z = (float(problem.logits[g, s, e]) - others[k - 1]) / float(scale[g, s, e])
    # Up to 100 in z, whose errors of 1e-6 the distribution function damps.
    assert got[g, s, e] == pytest.approx(.5 * math.erfc(-z / math.sqrt(2.)), abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(problem=routings.problems(experts=(1, 3), multiple=4), data=st.data())
def test_sigmoid_top_k(problem, data):
  """2412.19437, equations 12 to 16 and node-limited routing, in 2 or 4 nodes or one."""
  experts = problem.logits.shape[-1]
  num_nodes = data.draw(st.sampled_from([1, 2, 4]))
  max_nodes = data.draw(st.integers(1, num_nodes))
  best = data.draw(st.integers(1, experts // num_nodes))  # of each node, for its score
  k, factor = best * max_nodes, 2.5
  bias = problem.rng.standard_normal(experts).astype(np.float32)

  def choose(token):
    score = 1. / (1. + np.exp(-problem.logits[token].astype(np.float64)))
    biased = score + bias
    nodes = np.reshape(np.arange(experts), [num_nodes, -1])
    node_scores = [sum(sorted(biased[node], reverse=True)[:best]) for node in nodes]
    allowed, margin = routings.best(node_scores, max_nodes)
    outside = np.setdiff1d(np.arange(experts), nodes[allowed])
    biased[outside] = -100.
    chosen, also = routings.best(biased, k)
    gates = score[chosen] / score[chosen].sum() * factor
    return chosen, gates, min(margin, also)

  choices = token_choice.sigmoid_top_k(
      tf.constant(problem.logits), tf.constant(bias), k, num_nodes=num_nodes, max_nodes=max_nodes,
      scaling_factor=factor)
  check(problem, choices, choose)
  score = 1. / (1. + np.exp(-problem.logits.astype(np.float64)))
  np.testing.assert_allclose(choices.probability, score / score.sum(-1, keepdims=True), atol=1e-6)


def test_no_gradient_reaches_the_bias():
  logits = tf.random.stateless_normal([1, 8, 4], [1, 2])
  bias = tf.constant([.3, 0., -.2, .1])
  with tf.GradientTape() as tape:
    tape.watch((logits, bias))
    choices = token_choice.sigmoid_top_k(logits, bias, 2)
    loss = tf.reduce_sum(tf.sin(choices.gate) + tf.reduce_sum(tf.cos(choices.probability), -1, keepdims=True))
  by_logits, by_bias = tape.gradient(loss, (logits, bias))
  assert by_bias is None
  assert np.abs(by_logits).max() > 0.


def test_balanced_bias_moves_by_the_rate_towards_balance():
  got = token_choice.balanced_bias(tf.zeros([4]), tf.constant([5., 1., 3., 3.]), .01)
  np.testing.assert_allclose(got, [-.01, .01, 0., 0.])


def test_hashed_equals_integers_of_python():
  """2106.04426: the expert is a function of the token's id alone."""
  rng = np.random.default_rng()
  ids, experts = rng.integers(0, 64_000, (3, 50)), int(rng.integers(2, 40))
  for seed in (0, 7):
    got = token_choice.hashed(tf.constant(ids, tf.int32), experts, seed)

    def mix(x):
      for shift, factor in ((16, 0x7feb352d), (15, 0x846ca68b)):
        x = (x ^ (x >> shift)) * factor % 2**32
      return x ^ (x >> 16)

    want = [[(mix((mix(int(i) ^ seed) + 0x9e3779b9) % 2**32) >> 1) % experts for i in row] for row in ids]
    np.testing.assert_array_equal(got.expert[..., 0], want)
    np.testing.assert_array_equal(got.gate, np.ones((3, 50, 1)))


@pytest.mark.parametrize('experts', [3, 8, 64])
def test_hashes_are_even_and_differ_by_seed(experts):
  ids = tf.range(32_000)[None]
  hashes = [token_choice.hashed(ids, experts, seed).expert.numpy()[0, :, 0] for seed in (0, 1)]
  want = 32_000 / experts
  for hashed in hashes:
    counts = np.bincount(hashed, minlength=experts)
    assert np.abs(counts - want).max() < 5. * math.sqrt(want)  # 5 sigma
  assert np.mean(hashes[0] == hashes[1]) == pytest.approx(1 / experts, abs=.02)


@settings(max_examples=20, deadline=None)
@given(routings.problems())
def test_order_of_experts_does_not_matter(problem):
  logits, nonpadding, capacity = problem.args()
  experts = logits.shape[-1]
  order = problem.rng.permutation(experts)
  bias = problem.rng.standard_normal(experts).astype(np.float32)
  shuffled = tf.gather(logits, order, axis=-1)
  for choose in (
      token_choice.top2,
      lambda logits: token_choice.top_k(logits, 2, normalize=False),
      lambda logits: token_choice.sigmoid_top_k(
          logits, tf.constant(bias if logits is not shuffled else bias[order]), 2)):
    want, got = (gating.assign(choose(x), nonpadding, capacity) for x in (logits, shuffled))
    name = np.append(order, -1)  # shuffled expert -> expert
    np.testing.assert_array_equal(name[got.expert], want.expert)
    np.testing.assert_array_equal(got.slot >= 0, want.slot >= 0)
    np.testing.assert_allclose(got.gate, want.gate, atol=1e-6)
