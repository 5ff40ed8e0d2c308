"""Manual regions: one shard inside, the same values and gradients as whole, and faults."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from gshard_tf.runtime.partitioner import PartitionerError
from gshard_tf.xla_sharding import (
    Mesh, ShardingError, annotate, auto_to_manual, manual_region, manual_to_auto, mesh_split,
    open_region, partitioning, replicate)
from tests import partitioned

pytestmark = pytest.mark.slow

MESH = Mesh((4, 2), ('x', 'y'))
P = np.random.default_rng(0).standard_normal((8, 12)).astype(np.float32)
Q = np.random.default_rng(1).standard_normal((12, 6)).astype(np.float32)
TOLERANCE = 1e-5  # float32 sums of a dozen products, by parts


def local_products(mesh, p, q):
  """Along y all devices compute the same: the gradients must not count it twice."""
  with manual_region(mesh) as region:
    a, b = region.enter(p, ('x', None)), region.enter(q, (None, None))
    assert mesh != MESH or (a.shape, b.shape) == ((2, 12), (12, 6))
    return region.leave(tf.matmul(a, b), ('x', None))


def summed_products(mesh, p, q):
  with manual_region(mesh) as region:
    a, b = region.enter(p, ('x', 'y')), region.enter(q, ('y', None))
    assert mesh != MESH or (a.shape, b.shape) == ((2, 6), (6, 6))
    return region.leave(region.all_reduce(tf.matmul(a, b), 'y'), ('x', None))


def scattered_products(mesh, p, q):
  with manual_region(mesh) as region:
    a, b = region.enter(p, ('x', 'y')), region.enter(q, ('y', None))
    return region.leave(region.reduce_scatter(tf.matmul(a, b), 1, 'y'), ('x', 'y'))


def along_one_axis(mesh, p, q):
  """Manual along x; along y the partitioner goes on."""
  with manual_region(mesh, 'x') as region:
    a, b = region.enter(p, ('x', None)), region.enter(q, (None, None))
    y = tf.matmul(mesh_split(a, mesh, (None, 'y')), mesh_split(b, mesh, ('y', None)))
    return region.leave(tf.tanh(mesh_split(y, mesh, (None, None))), ('x', None))


def functions_by_name(mesh, p, q):
  """The pair of functions without the context manager."""
  a = auto_to_manual(p, mesh, ('x', None), ('x',))
  y = manual_to_auto(tf.exp(a), mesh, ('x', None), ('x',))
  return tf.matmul(y, q)


def halo(mesh, p, q):
  """Each row with the rows before and after it, which neighbours have."""
  with manual_region(mesh, 'x') as region:
    a = region.enter(p, ('x', None))
    above, below = region.shift(a[-1:], 1), region.shift(a[:1], -1)
    a = tf.concat([above, a, below], 0)
    return tf.matmul(region.leave(a[:-2] - 2. * a[1:-1] + a[2:], ('x', None)), q)


def exchanged(mesh, p, q):
  """A transpose by all-to-all: [rows of x, columns] -> [rows, columns of x]."""
  with manual_region(mesh, 'x') as region:
    a = region.enter(p, ('x', None))
    a = region.all_to_all(a, 1, 0)
    y = region.leave(tf.cumsum(a, 0), (None, 'x'))
  return tf.matmul(y, q)


def gathered(mesh, p, q):
  with manual_region(mesh) as region:
    a = region.enter(p, ('x', 'y'))
    rows = region.all_gather(a, 1, 'y')
    return tf.matmul(region.leave(tf.nn.softmax(rows), ('x', None)), q)


def twice(mesh, p, q):
  """What leaves a region enters another."""
  y = local_products(mesh, p, q)
  with manual_region(mesh, 'y') as region:
    return region.leave(tf.sin(region.enter(y, (None, 'y'))) * 2., (None, 'y'))


@pytest.mark.parametrize('mesh', [MESH, Mesh((8, 1), ('x', 'y')), Mesh((1, 2), ('x', 'y'))], ids=str)
@pytest.mark.parametrize('function', [
    local_products, summed_products, scattered_products, along_one_axis, functions_by_name, halo,
    exchanged, gathered, twice])
def test_a_region_computes_what_the_whole_does(function, mesh):
  if mesh.shape == (8, 1) and function is exchanged:
    mesh = Mesh((4, 2), ('y', 'x'))  # 8 devices do not divide 12 columns; another order of axes
  run = partitioned.compile_on(mesh, functools.partial(
      partitioned.value_and_gradients, functools.partial(function, mesh)), P, Q)
  partitioned.assert_close(
      run(P, Q), partitioned.unsharded(functools.partial(function, None), P, Q), TOLERANCE)


@pytest.mark.parametrize('wrap', [False, True])
@pytest.mark.parametrize('by', [1, -1, 3, -2, 4, -5, 0])
def test_shift(by, wrap):
  def shift(mesh, p):
    with manual_region(mesh) as region:
      a = region.enter(p, ('x', 'y'))
      return region.leave(region.shift(a, by, 'x', wrap), ('x', 'y'))
  shards = P.reshape(4, 2, 12)
  want = np.roll(shards, by, 0)
  if not wrap and by:
    want[slice(None, by) if by > 0 else slice(by, None)] = 0
  run = partitioned.compile_on(MESH, functools.partial(shift, MESH), P)
  np.testing.assert_array_equal(run(P), want.reshape(8, 12))


def test_a_local_sort_is_each_shards_own():
  """What no annotation can say: whole, it would be a sort of the whole tensor."""
  def local_sort(p):
    with manual_region(MESH) as region:
      return region.leave(tf.sort(region.enter(p, ('x', None)), 0), ('x', None))
  run = partitioned.compile_on(MESH, local_sort, P, split_results=True)
  np.testing.assert_array_equal(run(P), np.sort(P.reshape(4, 2, 12), 1).reshape(8, 12))
  assert not [kind for kind in ('all-gather', 'all-to-all', 'collective-permute', 'all-reduce')
              if f' {kind}(' in run.as_text()]


def test_index_and_size():
  def places(p):
    with manual_region(MESH) as region:
      assert (region.size(), region.size('x'), region.size(('y', 'x'))) == (8, 4, 8)
      ones = tf.ones([1, 1], tf.int32)
      return [region.leave(ones * region.index(axes), ('x', 'y')) for axes in (None, 'x', ('y', 'x'))]
  run = partitioned.compile_on(MESH, places, P)
  whole, row, swapped = run(P)
  np.testing.assert_array_equal(whole, np.arange(8).reshape(4, 2))
  np.testing.assert_array_equal(row, np.arange(4)[:, None].repeat(2, 1))
  np.testing.assert_array_equal(swapped, np.arange(8).reshape(2, 4).T)


def test_collectives_are_collectives():
  """No detour over a whole tensor."""
  def text(function):
    return partitioned.compile_on(
        MESH, functools.partial(function, MESH), P, Q, split_results=True).as_text()
  reduced = text(summed_products)
  assert ' all-reduce(' in reduced and ' all-gather(' not in reduced
  shifted = text(halo)
  assert ' collective-permute(' in shifted
  assert ' all-gather(' not in shifted and ' all-to-all(' not in shifted
  assert ' all-to-all(' in text(exchanged)


def test_without_a_mesh_it_is_the_very_same_tensor():
  p = tf.constant(P)
  with manual_region(None, 'x') as region:
    assert region.enter(p, ('x', None)) is p and region.leave(p, ('x', None)) is p
    assert region.shift(p, 1, wrap=True) is p and region.size() == 1
    assert open_region() is None
  assert auto_to_manual(p, None, ('x', None)) is p and manual_to_auto(p, None, ('x', None)) is p


def inside(action, axes=None):
  def run():
    with tf.Graph().as_default(), manual_region(MESH, axes) as region:
      action(region, tf.zeros([8, 12]))
  return run


@pytest.mark.parametrize('run, message', [
    (inside(lambda r, p: r.enter(p[:6], ('x', None))),
     r'6 elements of a dimension of a tensor of shape \(6, 12\) do not split into 4 equal shards '
     r'\(mesh axes x\).*pad the dimension to 8'),
    (inside(lambda r, p: r.enter(p, ('x',))), r'1 entries in dims mapping .* shape \(8, 12\)'),
    (inside(lambda r, p: r.enter(p, ('z', None))), "names 'z'; add it to the axes of the region"),
    (inside(lambda r, p: r.enter(p, ('y', None)), 'x'), "along x names 'y'; add it .* or annotate"),
    (inside(lambda r, p: None, 'z'), "the mesh has no axis 'z', only"),
    (inside(lambda r, p: mesh_split(p, MESH, ('x', None)), 'x'), r'or for one that is manual \(x\)'),
    (inside(lambda r, p: mesh_split(p, Mesh((8,), ('d',)), ('d', None))),
     r'Mesh\(d=8\) in a manual region of Mesh\(x=4, y=2\); annotate for the mesh of the region'),
    (inside(lambda r, p: inside(lambda *_: None, 'y')(), 'x'), 'open one region along the axes of both'),
])
def test_faults(run, message):
  with pytest.raises(ShardingError, match=message) as error:
    run()
  assert '\n' not in str(error.value)
  assert open_region() is None


def test_what_was_not_entered_is_named():
  def forgotten(p, q):
    with manual_region(MESH) as region:
      return region.leave(tf.matmul(region.enter(p, ('x', None)), q), ('x', None))
  with pytest.raises(PartitionerError, match=r'tensor<12x6xf32> from outside in .*MatMul.*region\.enter'):
    partitioned.compile_on(MESH, forgotten, P, Q)


def test_a_sort_along_some_axes_is_refused():
  def sort(p):
    with manual_region(MESH, 'x') as region:
      return region.leave(tf.sort(region.enter(p, ('x', None))), ('x', None))
  with pytest.raises(PartitionerError, match=r'sort or top-k .*along all axes, manual_region\(mesh\)'):
    partitioned.compile_on(MESH, sort, P)


def test_constants_inside_and_outside_are_kept_apart():
  """The same zeros pad shards, begin sums outside, and are branches of a loop inside."""
  def constants(mesh, p, q):
    with manual_region(mesh, 'x') as region:
      a = mesh_split(region.enter(p, ('x', None)), mesh, (None, 'y'))
      a = tf.pad(a * 2., [[1, 1], [0, 0]])[1:-1] + tf.constant(np.arange(12.), a.dtype)
      a = tf.while_loop(lambda i, _: i < 3, lambda i, b: (i + 1, tf.nn.relu(b) + 1.), (0, a))[1]
      y = region.leave(a, ('x', None))
    return tf.reduce_sum(y, 0), tf.pad(tf.matmul(y, q), [[1, 1], [0, 0]])
  run = partitioned.compile_on(MESH, functools.partial(constants, MESH), P, Q)
  partitioned.assert_close(run(P, Q), partitioned.unsharded(
      lambda *args: constants(None, *args), P, Q)[0], TOLERANCE)


def test_annotations_inside_are_of_the_shard():
  def table(p):
    with partitioning(MESH, {'ab': (None, 'y')}), manual_region(MESH, 'x') as region:
      a = annotate(region.enter(p, ('x', None)), 'ab')
      return region.leave(replicate(a * 2.), ('x', None))
  run = partitioned.compile_on(MESH, table, P)
  np.testing.assert_array_equal(run(P), P * 2)
