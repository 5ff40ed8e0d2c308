"""Expert choice against a loop written from arXiv 2202.09368, and its partitioned program."""

from hypothesis import assume, given, settings, strategies as st
import numpy as np
import tensorflow as tf

from gshard_tf.layers import expert_choice
from tests.layers import routings


@settings(max_examples=60, deadline=None)
@given(problem=routings.problems(), data=st.data())
def test_experts_take_the_tokens_that_want_them_most(problem, data):
  groups, size, experts = problem.logits.shape
  bound = data.draw(st.integers(1, experts))
  got = expert_choice.expert_choice(*problem.args(), bound)
  assert got.slot.shape == (groups, size, bound)
  for g in range(groups):
    p = np.array([routings.softmax(token) for token in problem.logits[g]])
    taken = {}  # token -> {expert: slot}
    for e in range(experts):
      tokens = sorted(np.flatnonzero(problem.nonpadding[g]), key=lambda s: -p[s, e])
      ranked = p[tokens, e]
      assume(np.all(ranked[:-1] - ranked[1:] > 1e-6))  # else float32 may order them otherwise
      for place, s in enumerate(tokens[:problem.capacity]):
        taken.setdefault(s, {})[e] = e * problem.capacity + place
    for s in range(size):
      kept = sorted(taken.get(s, {}), key=lambda e: -p[s, e])[:bound]
      ranked = sorted((p[s, e] for e in taken.get(s, {})), reverse=True)
      assume(np.all(np.diff(ranked) < -1e-6))
      choices = {int(e): (int(slot), float(gate)) for e, slot, gate in
                 zip(got.expert[g, s], got.slot[g, s], got.gate[g, s]) if e >= 0}
      assert sorted(choices) == sorted(kept)
      for e, (slot, gate) in choices.items():
        assert slot == taken[s][e]
        np.testing.assert_allclose(gate, p[s, e], atol=1e-6)
    assert (got.slot.numpy()[g] >= 0).sum() == (got.gate.numpy()[g] > 0).sum()


@settings(max_examples=20, deadline=None)
@given(routings.problems())
def test_every_expert_is_as_full_as_can_be(problem):
  groups, _, experts = problem.logits.shape
  got = expert_choice.expert_choice(*problem.args(), experts)
  for g in range(groups):
    for e in range(experts):
      places = got.slot.numpy()[g][got.expert.numpy()[g] == e] % problem.capacity
      want = min(problem.capacity, int(problem.nonpadding[g].sum()))
      assert sorted(places) == list(range(want))


def test_gradient_of_the_gates_is_that_of_the_probabilities():
  logits = tf.random.stateless_normal([2, 6, 4], [1, 2])
  results = []
  for bound in (4, 2):
    with tf.GradientTape() as tape:
      tape.watch(logits)
      routing = expert_choice.expert_choice(logits, tf.ones([2, 6]), 3, bound)
      loss = tf.reduce_sum(tf.sin(routing.gate))
    got = tape.gradient(loss, logits)
    with tf.GradientTape() as tape:
      tape.watch(logits)
      kept = tf.reduce_max(tf.one_hot(routing.expert, 4), 2)
      loss = tf.reduce_sum(tf.sin(tf.nn.softmax(logits) * kept))
    np.testing.assert_allclose(got, tape.gradient(loss, logits), atol=1e-6)
    results.append(kept.numpy().sum())
  assert results[0] > results[1] > 0
