"""Dispatch and combine: loops, both forms, their gradients, and their partitioned program.

Dimensions: G groups, S tokens in a group, E experts, C capacity, K choices of a
token, M model.
"""

import re

from hypothesis import given, settings, strategies as st
import jax
from jax.experimental import jax2tf
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest
import tensorflow as tf

from gshard_tf import xla_sharding
from gshard_tf.layers import dispatch
from gshard_tf.layers import gating

FORMS = {'einsum': (dispatch.dispatch_einsum, dispatch.combine_einsum),
         'gather': (dispatch.dispatch_gather, dispatch.combine_gather)}


def random_slots(rng, groups, size, choices, slots):
  """A random partial permutation int32 [G, S, K], -1 where a choice is dropped."""
  slot = np.full((groups, size * choices), -1, np.int32)
  for g in range(groups):
    kept = rng.integers(0, min(slots, size * choices) + 1)
    where = rng.permutation(size * choices)[:kept]
    slot[g, where] = rng.permutation(slots)[:kept]
  return slot.reshape(groups, size, choices)


def routing_of(slot, gate, experts, capacity):
  slot = tf.convert_to_tensor(slot)
  return gating.Routing(
      slot=slot, gate=tf.cast(gate, tf.float32), losses={}, num_experts=experts, capacity=capacity,
      expert=tf.where(slot >= 0, slot // capacity, -1), entropy=tf.zeros(slot.shape[:2]))


@st.composite
def problems(draw):
  """x, y, gate, slot, experts and capacity of all sizes."""
  groups, size, experts, capacity, dim = (
      draw(st.integers(*span)) for span in ((1, 3), (1, 7), (2, 4), (1, 4), (1, 5)))
  choices = draw(st.sampled_from([1, 2, 3, 9, 12]))  # few, and more than are added at once
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  slot = random_slots(rng, groups, size, choices, experts * capacity)
  gate = rng.random(slot.shape, np.float32) * (slot >= 0)
  x = rng.standard_normal((groups, size, dim), np.float32)
  y = rng.standard_normal((groups, experts * capacity, dim), np.float32)
  return x, y, gate, slot, experts, capacity


def loops(x, y, gate, slot):
  """Dispatched x and combined y; and the gradients of their sums weighted by y and x."""
  x, y, gate = (a.astype(np.float64) for a in (x, y, gate))
  xe, z = np.zeros_like(y), np.zeros_like(x)
  dx, dy, dgate = np.zeros_like(x), np.zeros_like(y), np.zeros_like(gate)
  for g, s, k in np.argwhere(slot >= 0):
    place = g, slot[g, s, k]
    xe[place] += x[g, s]
    dx[g, s] += y[place]
    z[g, s] += gate[g, s, k] * y[place]
    dy[place] += gate[g, s, k] * x[g, s]
    dgate[g, s, k] = y[place] @ x[g, s]
  return xe, z, dx, dy, dgate


def values_and_gradients(form, x, y, gate, slot, experts, capacity):
  dispatch_fn, combine_fn = FORMS[form]
  with tf.GradientTape() as tape:
    x, y, gate = (tf.convert_to_tensor(a) for a in (x, y, gate))
    tape.watch((x, y, gate))
    routing = routing_of(slot, gate, experts, capacity)
    xe, z = dispatch_fn(x, routing), combine_fn(y, routing)
    # Only through the operand of each, hence the stops.
    total = (tf.reduce_sum(xe * tf.stop_gradient(y)) + tf.reduce_sum(z * tf.stop_gradient(x)))
  return (xe, z, *tape.gradient(total, (x, y, gate)))


@pytest.mark.parametrize('form', FORMS)
@settings(max_examples=25, deadline=None)
@given(problem=problems())
def test_values_and_gradients_equal_the_loops(form, problem):
  x, y, gate, slot, *_ = problem
  names = ('dispatched', 'combined', 'dx', 'dy', 'dgate')
  for name, got, want in zip(names, values_and_gradients(form, *problem), loops(x, y, gate, slot)):
    # Sums of at most 12 products of numbers below 5: some ulps of float32.
    np.testing.assert_allclose(got, want, atol=1e-5, err_msg=name)


@settings(max_examples=30, deadline=None)
@given(problems())
def test_choice_of_slot_is_the_inverse(problem):
  *_, slot, experts, capacity = problem
  choice = dispatch.choice_of_slot(routing_of(slot, np.zeros(slot.shape), experts, capacity)).numpy()
  for flat, inverse in zip(slot.reshape(len(slot), -1), choice):
    kept = np.flatnonzero(flat >= 0)
    np.testing.assert_array_equal(inverse[flat[kept]], kept)
    assert (inverse >= 0).sum() == len(kept)
    assert inverse.min() >= -1


@pytest.mark.parametrize('form', FORMS)
def test_keeps_the_type_of_the_activations(form):
  slot = random_slots(np.random.default_rng(0), 2, 3, 2, 8)
  routing = routing_of(slot, np.ones(slot.shape, np.float32), 4, 2)
  dispatch_fn, combine_fn = FORMS[form]
  xe = dispatch_fn(tf.ones([2, 3, 5], tf.bfloat16), routing)
  assert xe.dtype == combine_fn(xe, routing).dtype == tf.bfloat16


def builtin_dispatch(x, routing):
  """As `dispatch_gather`, with TensorFlow's own gradient of a gather."""
  choice = dispatch.choice_of_slot(routing)
  rows = tf.gather(x, tf.maximum(choice // routing.slot.shape[2], 0), batch_dims=1)
  return rows * tf.cast(choice >= 0, x.dtype)[..., None]


# G, 3 groups a device, occurs in no other dimension of the problem.
_G, _S, _K, _E, _C, _M = 24, 7, 2, 4, 5, 6
_COLLECTIVE = re.compile(r'\b(all-to-all|all-reduce|all-gather|reduce-scatter|collective-permute)(-start)?\(')


def partitioned(dispatch_fn, combine_fn, choices=_K):
  """The compiled forward and backward pass on 8 devices, split along G; and its results."""
  mesh = xla_sharding.Mesh((8,), ('d',))
  split = lambda a: xla_sharding.mesh_split(a, mesh, ('d',) + (None,) * (a.shape.rank - 1))

  def step(x, gate, slot):
    with tf.GradientTape() as tape:
      tape.watch((x, gate))
      routing = routing_of(split(slot), split(gate), _E, _C)
      y = split(combine_fn(tf.sin(split(dispatch_fn(split(x), routing))), routing))
    return (y, *(split(d) for d in tape.gradient(y, (x, gate))))

  rng = np.random.default_rng(0)
  slot = random_slots(rng, _G, _S, choices, _E * _C)
  args = (rng.standard_normal((_G, _S, _M), np.float32),
          rng.random(slot.shape, np.float32) * (slot >= 0), slot)
  sharding = NamedSharding(jax.make_mesh((8,), ('d',)), PartitionSpec('d'))
  step = tf.function(step, jit_compile=True, autograph=False)
  compiled = jax.jit(jax2tf.call_tf(step), in_shardings=sharding, out_shardings=sharding).lower(*args).compile()
  return compiled.as_text(), compiled(*jax.device_put(args, sharding)), step(*args)


@pytest.mark.parametrize('form', FORMS)
def test_partitioned_along_groups_it_stays_on_each_device(form):
  text, got, want = partitioned(*FORMS[form])
  assert 'num_partitions=8' in text
  assert re.search(rf'f32\[{_G // 8},{_S},{_M}\]', text)  # a device's own groups
  assert not _COLLECTIVE.search(text)
  assert not re.search(rf'\[{_G},', text)  # no tensor of all groups, in whatever operation
  for g, w in zip(got, want):
    np.testing.assert_allclose(g, w, atol=1e-5)


def test_many_choices_of_a_token_have_no_rows_of_their_own():
  choices = 13
  text, got, want = partitioned(*FORMS['gather'], choices)
  # Devices agree on how often to add, and on nothing else.
  collectives = [line for line in text.splitlines() if _COLLECTIVE.search(line)]
  assert collectives
  assert all(re.search(r'= (s32\[\]|\(s32\[\], s32\[\]\))\S* all-reduce\(', c) for c in collectives), collectives
  assert not re.search(rf'\[{_G},', text)
  rows = rf'f32\[({_G // 8},)?({_S},{choices}|{_S * choices}),{_M}\]'
  assert not re.search(rows, text)
  for g, w in zip(got, want):
    np.testing.assert_allclose(g, w, atol=1e-5)


def test_the_builtin_gradient_would_not():
  # Why the gradients are written by hand, and that the test above can fail.
  text, *_ = partitioned(builtin_dispatch, dispatch.combine_gather)
  assert _COLLECTIVE.search(text)
