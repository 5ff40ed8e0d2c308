"""Dropless experts: against loops, in whatever sizes; how much they compute; partitioned.

Dimensions: G groups, S tokens in a group, E experts, K choices of a token, M
model, H hidden.
"""

import re

from hypothesis import given, settings, strategies as st
import jax
from jax.experimental import jax2tf
from jax.sharding import NamedSharding, PartitionSpec
from lingvo.core import py_utils
import numpy as np
import pytest
import tensorflow as tf

from gshard_tf import xla_sharding
from gshard_tf.layers import dropless
from gshard_tf.layers import experts
from gshard_tf.layers import gating
from gshard_tf.params import sharding
from tests.layers import layer as layers


def routing_of(expert, gate, num_experts):
  return gating.Routing(
      slot=None, gate=tf.convert_to_tensor(gate), losses={}, num_experts=num_experts,
      capacity=None, expert=tf.convert_to_tensor(expert), entropy=None)


def random_experts(rng, groups, size, choices, num_experts, skew):
  """Distinct experts of each token int32 [G, S, K], -1 where it goes without.

  The larger `skew`, the more tokens prefer the same experts.
  """
  score = skew * rng.standard_normal(num_experts) + rng.standard_normal((groups, size, num_experts))
  expert = np.argsort(-score)[..., :choices].astype(np.int32)
  return np.where(rng.random(expert.shape) < .2, -1, expert).astype(np.int32)


def product(x, gate, choice, weights):
  """The simplest expert: one weight."""
  del choice
  return tf.matmul(x * gate, weights[0])


@st.composite
def problems(draw):
  groups, size, num_experts, dim = (
      draw(st.integers(*span)) for span in ((1, 3), (1, 30), (1, 6), (1, 4)))
  choices = draw(st.integers(1, num_experts))
  devices = draw(st.sampled_from([d for d in range(1, num_experts + 1) if num_experts % d == 0]))
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  expert = random_experts(rng, groups, size, choices, num_experts, draw(st.sampled_from([0., 9.])))
  normal = lambda *shape: rng.standard_normal(shape, np.float32)
  return (normal(groups, size, dim), expert, rng.random(expert.shape, np.float32),
          normal(num_experts, dim, dim), normal(groups, size, dim), devices)


def loops(x, expert, gate, w, dy):
  """y and the gradients of x, gate and w under dy."""
  x, gate, w, dy = (a.astype(np.float64) for a in (x, gate, w, dy))
  y, dx, dgate, dw = (np.zeros_like(a) for a in (x, x, gate, w))
  for g, s, k in np.argwhere(expert >= 0):
    e = expert[g, s, k]
    y[g, s] += gate[g, s, k] * x[g, s] @ w[e]
    dx[g, s] += gate[g, s, k] * w[e] @ dy[g, s]
    dgate[g, s, k] = x[g, s] @ w[e] @ dy[g, s]
    dw[e] += gate[g, s, k] * np.outer(x[g, s], dy[g, s])
  return y, dx, dgate, dw


@settings(max_examples=30, deadline=None)
@given(problems())
def test_values_and_gradients_equal_the_loops(problem):
  x, expert, gate, w, dy, devices = problem
  tensors = [tf.constant(a) for a in (x, gate, w)]
  with tf.GradientTape() as tape:
    tape.watch(tensors)
    y = dropless.visit(product, tensors[0], routing_of(expert, tensors[1], len(w)),
                       [tensors[2]], ['emh'], devices)
  got = (y, *tape.gradient(y, tensors, output_gradients=tf.constant(dy)))
  for name, a, b in zip(('y', 'dx', 'dgate', 'dw'), got, loops(x, expert, gate, w, dy)):
    # Sums of up to 90 products of numbers below 5, in float32.
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5, err_msg=name)


@pytest.mark.parametrize('skew', [0., 9.])
def test_computes_as_many_blocks_as_the_tokens_fill(skew):
  num_experts, devices, seen = 8, 2, []
  expert = random_experts(np.random.default_rng(0), 2, 512, 2, num_experts, skew)

  def count(x, gate, choice, weights):
    seen.append(choice.numpy())  # the loop runs in Python here
    return product(x, gate, choice, weights)

  dropless.visit(count, tf.ones([2, 512, 3]), routing_of(expert, np.ones(expert.shape, np.float32), num_experts),
                 [tf.ones([num_experts, 3, 3])], ['emh'], devices)
  choices = np.concatenate(seen, 1)  # [D, blocks * B]
  # Each choice of a token once, on the device of its expert.
  flat = expert.ravel()
  for device, mine in enumerate(choices):
    want = np.flatnonzero((flat >= 0) & (flat // (num_experts // devices) == device))
    np.testing.assert_array_equal(np.sort(mine[mine >= 0]), want)
  rows = dropless.block_rows(flat.size, num_experts)
  load = np.bincount(flat[flat >= 0], minlength=num_experts).reshape(devices, -1)
  assert len(seen) == np.ceil(load / rows).sum(1).max()
  # The fullest device's rows, and for each of its experts less than a block of padding.
  assert len(seen) * rows < load.sum(1).max() + rows * num_experts / devices


@pytest.mark.parametrize('choices, num_experts, want', [
    (8192, 8, 512), (8192, 128, 64), (8192, 200, 32), (8192, 512, 16), (8192, 2048, 8), (3, 4, 8)])
def test_blocks_have_about_the_mean_load(choices, num_experts, want):
  assert dropless.block_rows(choices, num_experts) == want


def test_keeps_the_type_of_the_activations():
  x, w = tf.ones([1, 4, 3], tf.bfloat16), tf.ones([2, 3, 3], tf.bfloat16)
  expert = np.array([[[0], [1], [-1], [1]]], np.int32)
  with tf.GradientTape() as tape:
    tape.watch((x, w))
    y = dropless.visit(product, x, routing_of(expert, np.ones(expert.shape, np.float32), 2), [w], ['emh'], 1)
  dx, dw = tape.gradient(y, (x, w))
  assert y.dtype == dx.dtype == dw.dtype == tf.bfloat16
  np.testing.assert_array_equal(tf.cast(y, tf.float32)[0, :, 0], [3., 3., 0., 3.])


_COLLECTIVE = re.compile(r'\b(all-to-all|all-reduce|all-gather|reduce-scatter|collective-permute)(-start)?\(')
# No two dimensions alike that a test looks for; blocks have 16 rows.
_G, _S, _K, _E, _M, _H = 8, 24, 2, 24, 7, 10


def partitioned(mesh_shape, activation):
  """Experts forward and backward on 8 devices: HLO, results, those of one device."""
  layer = layers.make(experts.Experts.Params().Set(
      model_dim=_M, hidden_dim=_H, num_experts=_E, activation=activation))
  theta = layers.draw(layer, 0)
  rng = np.random.default_rng(1)
  expert = random_experts(rng, _G, _S, _K, _E, 1.)
  gate = rng.random(expert.shape, np.float32)
  x, dy = rng.standard_normal((2, _G, _S, _M), np.float32)
  mesh = xla_sharding.Mesh(mesh_shape, sharding.MESH_AXES)

  def step(mesh, x, dy, expert, gate, theta):
    with xla_sharding.partitioning(mesh, sharding.GSHARD):
      with tf.GradientTape() as tape:
        tape.watch((x, gate, theta))
        y = layer.FPropDropless(py_utils.NestedMap(theta), x, routing_of(expert, gate, _E))
      return y, tape.gradient(y, (x, gate, theta), output_gradients=dy)

  args = (x, dy, expert, gate, {k: v.numpy() for k, v in theta.items()})
  jax_mesh = jax.make_mesh(mesh_shape, sharding.MESH_AXES)
  spec = lambda key: NamedSharding(jax_mesh, PartitionSpec(*sharding.GSHARD[key]))
  weights = {k: spec('ehm' if k == 'wo' else 'emh') for k in theta}
  compiled = jax.jit(
      jax2tf.call_tf(tf.function(lambda *a: step(mesh, *a), jit_compile=True, autograph=False)),
      in_shardings=(spec('gsm'), spec('gsm'), spec('gsk'), spec('gsk'), weights),
      out_shardings=(spec('gsm'), (spec('gsm'), spec('gsk'), weights))).lower(*args).compile()
  want = tf.function(lambda *a: step(None, *a), autograph=False)(*args)
  return compiled.as_text(), compiled(*args), want


@pytest.mark.parametrize('mesh_shape, activation', [((8, 1), 'swiglu'), ((4, 2), 'relu')])
def test_partitioned_equals_whole_and_brings_no_weights_together(mesh_shape, activation):
  text, got, want = partitioned(mesh_shape, activation)
  assert 'num_partitions=8' in text
  experts_here, hidden = _E // mesh_shape[0], _H // mesh_shape[1]
  assert re.search(rf'f32\[1,{experts_here},{_M},{hidden}\]', text)  # a device's own weights
  # Of no size of hidden units is there a tensor with all experts, or of all devices.
  assert not re.search(rf'f32\[({_E}|{mesh_shape[0]}),(\d+,)*({_H}|{hidden})\b', text)
  in_loops = [line for line in text.splitlines() if _COLLECTIVE.search(line) and '/while' in line]
  # Only where the hidden units are split do devices meet within a block.
  assert bool(in_loops) == (mesh_shape[1] > 1), in_loops
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got,
               jax.tree.map(lambda t: t.numpy(), want))
