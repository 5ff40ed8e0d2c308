"""Annotations: what is emitted, how devices are tiled, and what is refused."""

import itertools

from hypothesis import given, strategies as st
from jax._src.lib import xla_client
import numpy as np
import pytest
import tensorflow as tf

from gshard_tf import op_sharding
from gshard_tf import xla_sharding
from gshard_tf.op_sharding import OpSharding
from gshard_tf.xla_sharding import Mesh, ShardingError, annotate, mesh_split, partitioning

MESH = Mesh((4, 2), ('expert', 'model'))
# A ring instead of rows: not the order of the ids.
RING = Mesh((2, 4), ('x', 'y'), np.array([[0, 1, 2, 3], [7, 6, 5, 4]]))


def emitted(annotation, shape):
  """The OpSharding that `annotation` puts on a tensor of `shape`."""
  with tf.Graph().as_default():
    y = annotation(tf.zeros(shape))
  assert y.op.type == 'XlaSharding'
  assert y.shape == tf.TensorShape(shape)
  return OpSharding.FromString(y.op.get_attr('sharding'))


def tiles(sharding):
  """The devices by tile, as XLA reads the proto."""
  proto = xla_client.OpSharding()
  proto.ParseFromString(sharding.SerializeToString())
  read = xla_client.HloSharding.from_proto(proto)
  return np.reshape(read.tile_assignment_devices(), read.tile_assignment_dimensions())


def holders(sharding, rank, tile):
  """The devices that hold `tile`, a tuple of `rank` indices."""
  assert len(sharding.tile_assignment_dimensions) == rank + sharding.replicate_on_last_tile_dim
  return set(np.atleast_1d(tiles(sharding)[tile]).tolist())


def device_loop(mesh, mapping):
  """By device and not by tile: which tile each one holds, from its place in the mesh."""
  held = {}
  for place in np.ndindex(*mesh.shape):
    tile = []
    for axes in mapping:
      index = 0
      for axis in xla_sharding.as_axes(axes):  # major to minor
        a = mesh.axis_names.index(axis)
        index = index * mesh.shape[a] + place[a]
      tile.append(index)
    held.setdefault(tuple(tile), set()).add(int(mesh.places[place]))
  return held


@pytest.mark.parametrize('mesh, shape, mapping', [
    (Mesh((8,), ('d',)), (8, 4), ('d', None)),
    (Mesh((8,), ('d',)), (4, 8), (None, 'd')),
    (MESH, (8, 4), ('expert', 'model')),
    (MESH, (4, 8), ('model', 'expert')),
    (MESH, (8, 3, 4), ('expert', None, None)),  # partial: each tile on two devices
    (MESH, (8, 3, 4), (None, None, 'model')),
    (MESH, (16, 3), (('expert', 'model'), None)),
    (MESH, (16, 3), (('model', 'expert'), None)),
    (RING, (2, 4), ('x', 'y')),
    (Mesh((2, 1, 3), ('a', 'b', 'c')), (6, 2, 2), ('c', 'b', None)),
    (Mesh((4, 4, 128), ('a', 'b', 'c')), (6, 512), ('b', ('c', 'a'))),
])
def test_each_device_holds_the_tile_of_its_place_in_the_mesh(mesh, shape, mapping):
  sharding = emitted(lambda x: mesh_split(x, mesh, mapping), shape)
  assert sharding.type == OpSharding.OTHER
  held = device_loop(mesh, mapping)
  assert np.prod(sharding.tile_assignment_dimensions) == mesh.size
  for tile, devices in held.items():
    assert holders(sharding, len(shape), tile) == devices
  assert sharding.replicate_on_last_tile_dim == (len(held) < mesh.size)
  for dim, axes in enumerate(mapping):
    assert sharding.tile_assignment_dimensions[dim] == mesh.partitions(axes)


@st.composite
def mappings(draw):
  """A mesh in a random device order, and a random mapping of two or three dimensions."""
  shape = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
  names = 'abc'[:len(shape)]
  rank = draw(st.integers(2, 3))
  owner = draw(st.lists(st.integers(-1, rank - 1), min_size=len(shape), max_size=len(shape)))
  mapping = [tuple(n for n, o in zip(names, owner) if o == dim) or None for dim in range(rank)]
  return Mesh(shape, names), mapping


@given(mappings())
def test_tile_assignment_of_any_mesh(problem):
  mesh, mapping = problem
  assignment, subgroups = mesh.tile_assignment(mapping)
  held = device_loop(mesh, mapping)
  for tile in itertools.product(*(range(n) for n in assignment.shape[:len(mapping)])):
    assert set(np.atleast_1d(assignment[tile]).tolist()) == held[tile]
  assert bool(subgroups) == (assignment.ndim > len(mapping)) == (len(held) < mesh.size)


def test_split_and_shard_are_mesh_splits():
  want = emitted(lambda x: mesh_split(x, Mesh((4,), ('d',)), (None, 'd', None)), (2, 8, 3))
  for dim in (1, -2):
    assert emitted(lambda x: xla_sharding.split(x, dim, 4), (2, 8, 3)) == want
  devices = np.array([[3, 1], [0, 2]])
  sharding = emitted(lambda x: xla_sharding.shard(x, devices), (4, 4))
  np.testing.assert_array_equal(tiles(sharding), devices)


@pytest.mark.parametrize('annotation', [
    lambda x: mesh_split(x, Mesh((8, 1), ('expert', 'model')), ('model', None)),
    xla_sharding.replicate, lambda x: mesh_split(x, MESH, (None, None))])
def test_replicated(annotation):
  assert emitted(annotation, (3, 4)) == OpSharding(type=OpSharding.REPLICATED)


@pytest.mark.parametrize('dtype', [tf.float32, tf.bfloat16, tf.int32, tf.bool])
def test_values_pass_unchanged(dtype):
  x = tf.cast(tf.constant([[0, 1], [1, 0]]), dtype)
  y = tf.function(lambda x: mesh_split(x, Mesh((2,), ('d',)), ('d', None)))(x)
  assert y.dtype == dtype
  np.testing.assert_array_equal(y, x)


def test_the_gradient_is_annotated_as_the_value_is():
  with tf.Graph().as_default() as graph:
    x = tf.compat.v1.placeholder(tf.float32, [8, 4])
    tf.gradients(tf.square(mesh_split(x, MESH, ('expert', 'model'))), x)
    forward, backward = [op for op in graph.get_operations() if op.type == 'XlaSharding']
  assert 'gradients' in backward.name
  assert forward.get_attr('sharding') == backward.get_attr('sharding')


def test_without_a_mesh_it_is_the_very_same_tensor():
  x = tf.zeros([2, 3])
  assert mesh_split(x, None, ('no', 'such', 'axes')) is x
  assert annotate(x, 'no_such_key') is x
  with partitioning(None, {}):
    assert annotate(x, 'xy') is x


def test_annotate_looks_up_the_table_in_force():
  table = {'bm': ('expert', None), 'bm_lookup': (None, 'model')}
  with partitioning(MESH, table):
    got = [emitted(lambda x: annotate(x, key), (8, 4)) for key in table]
  assert got == [emitted(lambda x: mesh_split(x, MESH, table[key]), (8, 4)) for key in table]


@pytest.mark.parametrize('mesh, mapping, iota', [
    (Mesh((2048,), ('d',)), ('d', None), ([2048], [0])),
    (Mesh((128, 16), ('d', 'm')), ('d', 'm'), ([2048], [0])),
    (Mesh((128, 16), ('d', 'm')), ('m', 'd'), ([128, 16], [1, 0])),
    (Mesh((128, 16), ('d', 'm')), (None, 'm'), ([128, 16], [1, 0])),
    (Mesh((128, 16), ('d', 'm'), np.arange(2048)[::-1]), ('d', 'm'), ([2048], [0])),
    (Mesh((8, 16, 16), 'xyz'), ('y', ('z', 'x')), ([8, 256], [1, 0])),
    (Mesh((8, 16, 16), 'xyz'), ('y', None), ([8, 16, 16], [1, 0, 2])),
])
def test_no_device_is_listed_where_an_iota_says_it(mesh, mapping, iota):
  sharding = emitted(lambda x: mesh_split(x, mesh, mapping), (2048, 2048))
  assert not sharding.tile_assignment_devices
  assert (sharding.iota_reshape_dims, sharding.iota_transpose_perm) == iota
  assert len(sharding.SerializeToString()) < 32


@given(st.permutations([2, 3, 4, 5]), st.permutations(range(4)))
def test_every_transposed_iota_is_found(sizes, perm):
  devices = np.arange(120).reshape(sizes).transpose(perm)
  reshape_dims, transpose_perm = op_sharding.iota_of(devices)
  np.testing.assert_array_equal(
      np.arange(120).reshape(reshape_dims).transpose(transpose_perm).flatten(), devices.flatten())


@given(st.permutations(range(12)))
def test_a_found_iota_is_the_order(devices):
  found = op_sharding.iota_of(np.array(devices))
  if found is not None:
    assert np.arange(12).reshape(found[0]).transpose(found[1]).flatten().tolist() == devices


@pytest.mark.parametrize('devices', [[0, 1, 3, 2], [0, 2, 1, 3, 4, 5], [1, 0], [0, 1, 2, 4, 3, 5]])
def test_other_orders_are_listed(devices):
  sharding = emitted(lambda x: xla_sharding.shard(x, devices), [len(devices)])
  assert list(sharding.tile_assignment_devices) == devices and not sharding.iota_reshape_dims


def test_nested_contexts_restore():
  inner = Mesh((2,), ('d',))
  assert xla_sharding.current().mesh is None
  with partitioning(MESH, {'b': ('expert',)}):
    with partitioning(inner, {'b': ('d',)}):
      assert xla_sharding.current() == (inner, {'b': ('d',)})
      with partitioning(None, {}):
        assert annotate(x := tf.zeros([4]), 'b') is x
      assert xla_sharding.current().mesh is inner
    assert xla_sharding.current() == (MESH, {'b': ('expert',)})
    with pytest.raises(KeyError), partitioning(inner, {}):
      raise KeyError
    assert xla_sharding.current().mesh is MESH
  assert xla_sharding.current().mesh is None


@pytest.mark.parametrize('annotation, message', [
    (lambda x: mesh_split(x, MESH, ('expert',)),
     r"1 entries in dims mapping \('expert',\) for a tensor of shape \(8, 4\)"),
    (lambda x: mesh_split(x, MESH, ('expret', None)),
     r"no axis 'expret', only \('expert', 'model'\); did you mean 'expert'\?"),
    (lambda x: mesh_split(x, MESH, ('zzz', None)), r"no axis 'zzz', only \('expert', 'model'\)$"),
    (lambda x: mesh_split(x, MESH, ('model', 'model')), r"\('model', 'model'\) uses a mesh axis for two dim"),
    (lambda x: mesh_split(x, MESH, (('model', 'model'), None)), 'uses a mesh axis for two dim'),
    (lambda x: xla_sharding.split(x, 2, 4), r'dimension 2 of a tensor of shape \(8, 4\); choose one from -2 to 1'),
    (lambda x: xla_sharding.split(x, -3, 4), 'dimension -3 .* from -2 to 1'),
    (lambda x: xla_sharding.shard(x, np.array([[0, 2], [4, 6]])), r'0\.\.3 once, got 4 ids from 0 to 6'),
    (lambda x: xla_sharding.shard(x, np.arange(4)), r'shape \(4,\) for a tensor of shape \(8, 4\)'),
])
def test_annotations_that_do_not_fit_raise(annotation, message):
  with pytest.raises(ShardingError, match=message):
    emitted(annotation, [8, 4])


def test_eager_tensors_are_refused():
  with pytest.raises(ShardingError, match='call it inside a tf.function'):
    xla_sharding.replicate(tf.zeros([8]))


@pytest.mark.parametrize('key, message', [
    ('bn', "no entry 'bn', only bm, bml, bn_x; did you mean"),
    ('qqqqq', "no entry 'qqqqq', only bm, bml, bn_x$"),
    ('bml', r"maps 'bml', 3 dimensions, to 2 entries \('expert', None\)"),
    ('bn_x', r"maps 'bn_x', 2 dimensions, to 1 entries"),
])
def test_table_errors(key, message):
  table = {'bm': ('expert', None), 'bml': ('expert', None), 'bn_x': (None,)}
  with partitioning(MESH, table), pytest.raises(ShardingError, match=message):
    emitted(lambda x: annotate(x, key), [8] * len(key.partition('_')[0]))


@pytest.mark.parametrize('args, message', [
    (((4, 2), ('a',)), r'shape \(4, 2\) needs 2 distinct axis names, got'),
    (((4, 2), ('a', 'a')), r"needs 2 distinct axis names, got \('a', 'a'\)"),
    (((4, 0), ('a', 'b')), r'\(4, 0\) has an axis smaller than 1'),
    (((2, 2), ('a', 'b'), np.array([0, 1, 2, 2])), r'\(2, 2\) must hold each of 0\.\.3 once, got 4 ids from 0 to 2'),
    (((2, 2), ('a', 'b'), np.arange(1, 5)), 'got 4 ids from 1 to 4'),
    (((2, 2), ('a', 'b'), np.arange(3)), 'got 3 ids from 0 to 2'),
    (((2, 2), ('a', 'b'), np.arange(0)), 'got 0 ids$'),
])
def test_bad_meshes_raise(args, message):
  with pytest.raises(ShardingError, match=message):
    Mesh(*args)


def test_mesh_describes_itself():
  assert repr(MESH) == 'Mesh(expert=4, model=2)'
  assert MESH.size == 8
  assert [MESH.partitions(a) for a in (None, 'expert', 'model', ('expert', 'model'))] == [1, 4, 2, 8]


def test_meshes_are_equal_by_value():
  assert MESH == Mesh((4, 2), ('expert', 'model')) and hash(MESH) == hash(Mesh((4, 2), ('expert', 'model')))
  assert MESH != Mesh((4, 2), ('expert', 'data')) and MESH != Mesh((2, 4), ('expert', 'model'))
  assert RING != Mesh((2, 4), ('x', 'y')) and MESH != 'Mesh(expert=4, model=2)'
