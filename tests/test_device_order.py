"""Orders of devices: rings of near neighbours, and the same as Lingvo's."""

from lingvo.core import gshard_utils
import numpy as np
import pytest

from gshard_tf import device_order
from gshard_tf.xla_sharding import Mesh, ShardingError


def hops(order, axis, rows, columns, cores, wraps):
  """Links between ring neighbours along a mesh axis, for each pair."""
  def place(device):
    return np.array([device // cores // columns, device // cores % columns])
  distances = []
  for a, b in zip(order.flatten(), np.roll(order, -1, axis).flatten()):
    apart = np.abs(place(a) - place(b))
    if wraps:
      apart = np.minimum(apart, [rows, columns] - apart)
    distances.append(apart.sum())
  return distances


@pytest.mark.parametrize('n', range(1, 10))
def test_neighbours_in_zigzag_are_two_links_apart_at_most(n):
  order = device_order.zigzag(np.arange(n))
  assert sorted(order) == list(range(n))
  assert np.abs(order - np.roll(order, -1)).max() <= 2


@pytest.mark.parametrize('rows, columns, cores, wraps, farthest', [
    (8, 16, 2, False, (2, 1)), (4, 4, 2, False, (2, 1)), (3, 5, 2, False, (2, 1)),
    (8, 8, 2, True, (1, 1)), (4, 6, 1, False, (2, 2)), (4, 6, 1, True, (1, 1)),
    (1, 4, 2, False, (0, 1))])
def test_both_axes_of_a_slice_are_rings(rows, columns, cores, wraps, farthest):
  order = device_order.slice_2d(rows, columns, cores, wraps)
  assert order.shape == (rows, columns * cores)
  assert sorted(order.flatten()) == list(range(order.size))
  for axis in (0, 1):
    assert max(hops(order, axis, rows, columns, cores, wraps)) == farthest[axis]


@pytest.mark.parametrize('rows, columns', [(8, 16), (4, 4), (16, 8)])
def test_lingvo_orders_a_part_of_a_pod_the_same(rows, columns):
  np.testing.assert_array_equal(
      device_order.slice_2d(rows, columns),
      gshard_utils.GetNonPod2dMesh([rows, columns * 2], [rows, columns, 2]))


def test_a_mesh_takes_an_order():
  mesh = Mesh((4, 8), ('expert', 'model'), device_order.slice_2d(4, 4))
  assert mesh.devices[1, 0] == 16  # the third row of chips is second in zigzag


@pytest.mark.parametrize('args', [(0, 4), (4, 0), (4, 4, 3)])
def test_no_such_slice(args):
  with pytest.raises(ShardingError, match='1 or 2 cores'):
    device_order.slice_2d(*args)
