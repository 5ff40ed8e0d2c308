"""Shardings and groups in the names of mesh axes."""

from hypothesis import given, strategies as st
import numpy as np
import pytest

from gshard_tf import device_mesh
from gshard_tf.runtime import tiles

MESH = device_mesh.Mesh((4, 2), ('e', 'm'))


@pytest.mark.parametrize('text, want', [
    ('{replicated}', ((), ())),
    ('{maximal device=3}', ((), ())),
    ('{devices=[4,1,2]<=[8] last_tile_dim_replicate}', (('e',), ())),
    ('{devices=[2,4]<=[4,2]T(1,0)}', (('m',), ('e',))),
    ('{devices=[8,1]<=[8]}', (('e', 'm'), ())),
    ('{devices=[1,8]<=[4,2]T(1,0)}', ((), ('m', 'e'))),
    ('{devices=[2,1,4]0,2,4,6,1,3,5,7 last_tile_dim_replicate}', (('m',), ())),
    ('{devices=[2,4]<=[8]}', None),  # half of the axis e
])
def test_axes_of_shardings(text, want):
  assert tiles.axes_of_sharding(text, 2, MESH) == want


@st.composite
def _layouts(draw):
  sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
  names = 'xyz'[:len(sizes)]
  mesh = device_mesh.Mesh(sizes, names)
  rank = draw(st.integers(1, 3))
  axes = [()] * rank
  for name in draw(st.permutations(names)):
    place = draw(st.integers(-1, rank - 1))
    if place >= 0:
      axes[place] += (name,)
  return mesh, tuple(axes)


@given(_layouts())
def test_axes_are_those_that_made_the_tiles(layout):
  mesh, axes = layout
  assignment, subgroups = mesh.tile_assignment(axes)
  text = (f'{{devices=[{",".join(map(str, assignment.shape))}]{",".join(map(str, assignment.flat))}'
          f'{" last_tile_dim_replicate" if subgroups else ""}}}')
  # Axes of one device are not to be seen.
  want = tuple(tuple(a for a in along if mesh.partitions(a) > 1) for along in axes)
  assert tiles.axes_of_sharding(text, len(axes), mesh) == want


@pytest.mark.parametrize('text, want, axes', [
    ('replica_groups={{0,2,4,6},{1,3,5,7}}, x', [[0, 2, 4, 6], [1, 3, 5, 7]], ('e',)),
    ('replica_groups=[2,4]<=[4,2]T(1,0), x', [[0, 2, 4, 6], [1, 3, 5, 7]], ('e',)),
    ("replica_groups=mesh['a'=4,'b'=2] {'a'}, x", [[0, 2, 4, 6], [1, 3, 5, 7]], ('e',)),
    ("replica_groups=mesh['a'=4,'b'=2] {'b'}, x", [[0, 1], [2, 3], [4, 5], [6, 7]], ('m',)),
    ('replica_groups=[4,2]<=[8], x', [[0, 1], [2, 3], [4, 5], [6, 7]], ('m',)),
    ('replica_groups={}, x', [list(range(8))], ('e', 'm')),
    ('channel_id=1', [list(range(8))], ('e', 'm')),
    ('replica_groups=[2,4]<=[8]', [[0, 1, 2, 3], [4, 5, 6, 7]], ()),
    ('source_target_pairs={{0,1},{1,0}}', [[0, 1], [1, 0]], None),
])
def test_groups(text, want, axes):
  groups = tiles.groups(f', channel_id=1, {text}', 8)
  np.testing.assert_array_equal(groups, want)
  if axes is not None:
    assert tiles.axes_of_groups(groups, MESH) == axes


def test_shards_are_rounded_up():
  assert tiles.shard(MESH, (7, 6, 5), (('e',), (), ('e', 'm'))) == (2, 6, 1)
