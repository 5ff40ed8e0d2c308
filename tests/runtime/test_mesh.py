"""Tests of gshard_tf.runtime.mesh; the tests have eight CPU devices."""

import jax
import numpy as np
import pytest

from gshard_tf import device_order
from gshard_tf.runtime import mesh as mesh_lib

AXES = ('expert', 'model')


@pytest.mark.parametrize('text, sizes', [
    ('8', (8, 1)), ('4x2', (4, 2)), ('1', (1, 1)), ('2048x1', (2048, 1)), ('auto', None)])
def test_parse(text, sizes):
  assert mesh_lib.parse(text, len(AXES)) == sizes


@pytest.mark.parametrize('text', ['', 'x', '8x', '0', '4x0', '-1', '1.5', 'eight', '2x2x2', 'AUTO'])
def test_parse_says_what_a_mesh_looks_like(text):
  with pytest.raises(mesh_lib.MeshError) as error:
    mesh_lib.parse(text, len(AXES))
  assert str(error.value).startswith(f'--mesh={text}: ')
  assert 'auto' in str(error.value) and '1 to 2 sizes' in str(error.value)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('sizes', [(8, 1), (4, 2), (2, 1)])
def test_make_lays_devices_in_row_major_order(sizes):
  """As xla_sharding.Mesh numbers them, whose numbers are in the annotations."""
  mesh = mesh_lib.make(sizes, AXES)
  assert mesh.axis_names == AXES
  count = int(np.prod(sizes))
  assert [d.id for d in mesh.devices.flat] == [d.id for d in jax.devices()[:count]]
  assert mesh.devices.shape == sizes


def test_auto_takes_all_devices():
  assert mesh_lib.make(None, AXES).devices.shape == (len(jax.devices()), 1)


def test_make_says_how_many_devices_there_are():
  with pytest.raises(mesh_lib.MeshError, match='a mesh of 8x2 needs 16 devices; 8 of platform cpu'):
    mesh_lib.make((8, 2), AXES)


def test_sharding_of_dimensions_along_no_one_and_two_axes():
  mesh = mesh_lib.make((4, 2), AXES)
  shard = lambda axes, shape: mesh_lib.sharding(mesh, axes).shard_shape(shape)
  assert shard((), (16, 24)) == (16, 24)
  assert shard((('expert',),), (16, 24)) == (4, 24)
  assert shard(((), ('model',)), (16, 24)) == (16, 12)
  assert shard((('expert', 'model'), ()), (16, 24)) == (2, 24)


def test_make_lays_devices_in_a_given_order():
  mesh = mesh_lib.make((4, 2), AXES, order=device_order.slice_2d(2, 2).reshape(4, 2))
  assert [d.id for d in mesh.devices.flat] == device_order.slice_2d(2, 2).flatten().tolist()
  with pytest.raises(mesh_lib.MeshError, match=r'mesh of 4x2 must hold each of 0\.\.7 once, got 4 ids'):
    mesh_lib.make((4, 2), AXES, order=np.arange(4))
