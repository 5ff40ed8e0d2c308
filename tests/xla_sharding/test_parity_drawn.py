"""Parity for drawn shapes, meshes of one to three dimensions in any device order, and mappings."""

import functools
import math

from hypothesis import HealthCheck, given, settings, strategies as st
import numpy as np
import pytest
import tensorflow as tf

from gshard_tf.runtime.partitioner import PartitionerError
from gshard_tf.xla_sharding import Mesh, mesh_split
from tests import partitioned

pytestmark = pytest.mark.slow

SHAPES = [(8,), (3,), (4, 2), (2, 4), (2, 3), (2, 2, 2), (1, 4, 2)]


@st.composite
def meshes(draw):
  shape = draw(st.sampled_from(SHAPES))
  order = draw(st.one_of(st.none(), st.permutations(range(math.prod(shape)))))
  return Mesh(shape, 'xyz'[:len(shape)], None if order is None else np.array(order))


@st.composite
def mappings(draw, mesh, rank):
  """Each axis of the mesh along some dimension or none, in any order."""
  mapping = [()] * rank
  for axis in draw(st.permutations(mesh.axis_names)):
    dim = draw(st.integers(-1, rank - 1))
    if dim >= 0:
      mapping[dim] += (axis,)
  return [m or None for m in mapping]


def out_of_order(mesh, chosen):
  """Whether a dimension lies along axes in another order than that of the mesh."""
  along = [axes for mapping in chosen for axes in mapping if axes]
  return any(axes != tuple(n for n in mesh.axis_names if n in axes) for axes in along)


def product(on, p, q):
  return on(2, tf.einsum('abc,cd->abd', on(0, p), on(1, q)))


def normalised(on, p, q):
  return on(2, tf.cumsum(tf.nn.softmax(on(0, p), 1), 0)) * tf.reduce_sum(on(1, q))


def rearranged(on, p, q):
  y = tf.reshape(tf.transpose(on(0, p), [1, 2, 0]), [-1, p.shape[0], 1])
  return on(2, tf.concat([y, y[::-1] ** 2], 1)) + tf.reduce_mean(on(1, q), [0, 1])


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_no_annotation_changes_a_result(use_partitioner, data):
  mesh = data.draw(meshes(), 'mesh')
  use_partitioner(data.draw(st.sampled_from(['shardy', 'gspmd'])))
  a, b, c, d = data.draw(st.tuples(*[st.integers(1, 9)] * 4), 'sizes')
  function = data.draw(st.sampled_from([product, normalised, rearranged]), 'function')
  chosen = [data.draw(mappings(mesh, rank), 'mapping') for rank in (3, 2, 3)]
  rng = np.random.default_rng(0)
  args = [rng.standard_normal(shape).astype(np.float32) for shape in ((a, b, c), (c, d))]
  on = lambda i, x: mesh_split(x, mesh, chosen[i])
  try:
    run = partitioned.compile_on(mesh, functools.partial(
        partitioned.value_and_gradients, functools.partial(function, on)), *args)
  except PartitionerError as e:
    assert 'name axes in the order' in str(e) and function is product and out_of_order(mesh, chosen)
    return
  want = partitioned.unsharded(functools.partial(function, lambda i, x: x), *args)
  partitioned.assert_close(run(*args), want, 2e-5)  # as in test_parity
