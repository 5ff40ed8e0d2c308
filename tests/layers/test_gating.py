"""What all gatings share: capacity, places, losses."""

from hypothesis import assume, given, settings, strategies as st
import numpy as np
import pytest
import tensorflow as tf

from gshard_tf.layers import gating
from tests.layers import routings


@given(st.integers(1, 300), st.integers(2, 64), st.floats(.1, 8.), st.integers(1, 8))
def test_expert_capacity(size, experts, factor, floor):
  capacity = gating.expert_capacity(size, experts, factor, floor)
  assert 1 <= capacity <= size
  assert capacity >= min(size, floor)
  assert capacity == size or capacity * experts >= factor * size  # room as promised
  # No place more than that needs.
  assert capacity <= floor or (capacity - 1) * experts < factor * size
  assert gating.expert_capacity(size, experts, None, floor) == size


@st.composite
def choices_of(draw):
  """Choices with experts missing, and of which some are -1; a problem."""
  problem = draw(routings.problems())
  groups, size, experts = problem.logits.shape
  k = draw(st.integers(1, experts))
  expert = np.argsort(problem.rng.random((groups, size, experts)), -1)[..., :k]
  expert = np.where(problem.rng.random(expert.shape) < .2, -1, expert)
  probability = tf.nn.softmax(problem.logits)
  gate = problem.rng.random(expert.shape).astype(np.float32)
  return gating.Choices(tf.constant(expert, tf.int32), tf.constant(gate), probability), problem


@settings(max_examples=60, deadline=None)
@given(choices_of(), st.booleans())
def test_assign_fills_places_choice_by_choice_and_token_by_token(drawn, prioritized):
  choices, problem = drawn
  got = gating.assign(choices, problem.nonpadding, problem.capacity, prioritized=prioritized)
  expert = np.where(problem.nonpadding[..., None] > 0, choices.expert, -1)
  slots = []
  for wishes, probability in zip(expert, choices.probability.numpy()):
    priority = probability.max(-1)
    assume(not prioritized or len(set(priority)) == len(priority))
    order = np.argsort(-priority) if prioritized else None
    slots.append(routings.fill(wishes, problem.capacity, order))
  kept = np.array(slots) >= 0
  routings.check(got, expert, slots, np.where(kept, choices.gate, 0.))
  p = choices.probability.numpy().astype(np.float64)
  want = -np.where(p > 0, p * np.log(np.maximum(p, 1e-300)), 0.).sum(-1)
  np.testing.assert_allclose(got.entropy, want, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(choices_of())
def test_routing_is_a_partial_permutation(drawn):
  choices, problem = drawn
  got = gating.assign(choices, problem.nonpadding, problem.capacity)
  slot, experts = got.slot.numpy(), problem.logits.shape[-1]
  assert (got.num_experts, got.capacity) == (experts, problem.capacity)
  assert slot.min() >= -1 and slot.max() < experts * problem.capacity
  for group in slot:
    used = group[group >= 0]
    assert len(set(used)) == len(used)  # no slot twice
    for expert in range(experts):  # places are taken from the first on
      places = sorted(used[used // problem.capacity == expert] % problem.capacity)
      assert places == list(range(len(places)))
  assert (slot[problem.nonpadding == 0] == -1).all()


@settings(max_examples=30, deadline=None)
@given(choices_of())
def test_gates_that_are_kept_can_be_scaled_to_one(drawn):
  choices, problem = drawn
  got = gating.assign(choices, problem.nonpadding, problem.capacity, normalize_kept=True)
  before = gating.assign(choices, problem.nonpadding, problem.capacity)
  total = before.gate.numpy().sum(-1, keepdims=True)
  np.testing.assert_allclose(got.gate, before.gate / np.maximum(total, 1e-30), atol=1e-5)


def test_with_room_for_all_gates_need_no_places():
  # So that a dispatch without slots does not pay for them: no cumulative sum is left.
  @tf.function(autograph=False)
  def gates(expert, gate):
    choices = gating.Choices(expert, gate, tf.ones([1, 8, 4]) / 4.)
    return gating.assign(choices, tf.ones([1, 8]), 8).gate
  graph = gates.get_concrete_function(tf.TensorSpec([1, 8, 2], tf.int32), tf.TensorSpec([1, 8, 2])).graph
  below, frontier = set(), [graph.outputs[0].op]
  while frontier:
    op = frontier.pop()
    if op not in below:
      below.add(op)
      frontier += [t.op for t in op.inputs]
  assert {op.type for op in below} >= {'SelectV2'}
  assert 'Cumsum' not in {op.type for op in below}


@settings(max_examples=30, deadline=None)
@given(routings.problems())
def test_losses_equal_loops_over_tokens(problem):
  logits, nonpadding = problem.logits.astype(np.float64), problem.nonpadding
  choices = gating.choose(tf.constant(problem.logits), 2)
  balances, squares = [], []
  for group, real, wishes in zip(logits, nonpadding, choices.numpy()):
    tokens = np.flatnonzero(real)
    balances.append(routings.balance(
        [routings.softmax(group[s]) for s in tokens], wishes[tokens], logits.shape[-1]))
    squares += [np.log(np.exp(group[s]).sum()) ** 2 for s in tokens]
  probability = tf.nn.softmax(tf.constant(problem.logits))
  np.testing.assert_allclose(gating.balance_loss(probability, choices, nonpadding),
                             np.mean(balances), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(gating.z_loss(tf.constant(problem.logits), nonpadding),
                             np.mean(squares) if squares else 0., rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('experts', [2, 5, 8])
def test_balance_loss_is_one_at_perfect_balance_and_e_at_collapse(experts):
  size = 3 * experts
  ones = tf.ones([1, size])

  def loss(logits, k):
    logits = tf.constant(logits[None], tf.float32)
    return float(gating.balance_loss(tf.nn.softmax(logits), gating.choose(logits, k), ones))

  balanced = 3. * np.eye(experts)[np.arange(size) % experts]
  assert loss(balanced, 1) == pytest.approx(1., rel=1e-5)
  balanced += 2. * np.eye(experts)[(np.arange(size) + 1) % experts]  # second choices too
  assert loss(balanced, 2) == pytest.approx(1., rel=1e-5)
  collapsed = 50. * np.eye(experts)[np.zeros(size, int)]  # exp(-50) elsewhere
  assert loss(collapsed, 1) == pytest.approx(experts, rel=1e-5)


def test_losses_do_not_see_padding():
  rng = np.random.default_rng()
  logits = rng.standard_normal((2, 8, 4)).astype(np.float32)
  nonpadding = np.repeat([[1., 1., 1., 1., 1., 0., 0., 0.]], 2, 0).astype(np.float32)

  def losses(logits, nonpadding):
    logits = tf.constant(logits)
    expert = gating.choose(logits, 1)
    return [float(gating.balance_loss(tf.nn.softmax(logits), expert, nonpadding)),
            float(gating.z_loss(logits, nonpadding))]

  want = losses(logits[:, :5], nonpadding[:, :5])
  logits[:, 5:] = 10.
  assert losses(logits, nonpadding) == pytest.approx(want, rel=1e-5)


def test_gradient_of_the_balance_loss_spreads_the_load():
  # More likely experts are more loaded, so a step downhill evens them out.
  bias = tf.constant([1.5, 0.5, 0., -0.5])
  noise = np.random.default_rng(0).standard_normal((1, 64, 4)).astype(np.float32)
  with tf.GradientTape() as tape:
    tape.watch(bias)
    logits = bias + noise
    loss = gating.balance_loss(tf.nn.softmax(logits), gating.choose(logits, 1), tf.ones([1, 64]))
  gradient = tape.gradient(loss, bias).numpy()
  assert gradient[0] == gradient.max() > 0
  assert gradient[3] < 0


@given(st.integers(1, 3), st.lists(st.floats(0, 100), min_size=1, max_size=6))
def test_squared_variation(groups, values):
  values = np.array([values] * groups, np.float32)
  mean = values.mean(dtype=np.float64)
  want = values.var(dtype=np.float64) / (mean**2 + 1e-9)
  np.testing.assert_allclose(gating.squared_variation(tf.constant(values)), want, rtol=1e-4, atol=1e-5)
