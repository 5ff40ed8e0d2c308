"""Sharding annotations for TensorFlow tensors (GShard, arXiv 2006.16668, section 3.2).

A `Mesh` names the dimensions of an array of devices. An annotation says how the
dimensions of one tensor lie along the axes of a mesh; the SPMD partitioner of
XLA completes the rest of the program from the few tensors that are annotated.

  mesh = Mesh((4, 2), ('expert', 'model'))
  y = mesh_split(x, mesh, ('expert', None, 'model'))

Layers do not name mesh axes. They name their dimensions by einsum letters, and
the experiment owns one table from letters to mesh axes:

  with partitioning(mesh, {'egcm': ('expert', None, None, 'model')}):
    x = annotate(x, 'egcm')

Without a mesh `annotate` is the identity. With one it always emits the
annotation, and a key that the table lacks is an error.

An annotation acts on the gradient of a tensor as on the tensor itself.
"""

import contextlib
import difflib
import threading
from typing import Mapping, NamedTuple, Sequence

import numpy as np
import tensorflow as tf
from tensorflow.python.compiler.xla.experimental import xla_sharding as tf_xla_sharding

# One entry of a dims mapping: unsharded, along one mesh axis, or along several.
AxisNames = None | str | tuple[str, ...]
DimsMapping = Sequence[AxisNames]
ShardingTable = Mapping[str, DimsMapping]


class ShardingError(ValueError):
  """An annotation that does not fit its tensor or its mesh."""


class Mesh:
  """A named, possibly multi-dimensional array of logical devices.

  Attributes:
    shape: sizes of the axes.
    axis_names: one name for each axis.
    devices: int array of shape `shape`; each element is the position of a
      device in the device assignment of the compiled program.
  """

  def __init__(self, shape: Sequence[int], axis_names: Sequence[str],
               devices: np.ndarray | None = None):
    """Builds a mesh.

    Args:
      shape: sizes of the axes, each at least 1.
      axis_names: distinct names, as many as `shape` has entries.
      devices: the device order, an int array of `prod(shape)` distinct ids from
        0; row-major order by default.

    Raises:
      ShardingError: names and sizes do not match, or `devices` is not a
        permutation.
    """
    self.shape = tuple(int(n) for n in shape)
    self.axis_names = tuple(axis_names)
    if len(self.shape) != len(self.axis_names) or len(set(self.axis_names)) < len(self.axis_names):
      raise ShardingError(
          f'a mesh of shape {self.shape} needs {len(self.shape)} distinct axis '
          f'names, got {self.axis_names}')
    if min(self.shape, default=1) < 1:
      raise ShardingError(f'mesh shape {self.shape} has an axis smaller than 1')
    if devices is None:
      devices = np.arange(self.size)
    devices = np.asarray(devices)
    if not np.array_equal(np.sort(devices, axis=None), np.arange(self.size)):
      span = f' from {devices.min()} to {devices.max()}' if devices.size else ''
      raise ShardingError(
          f'the device order of a mesh of shape {self.shape} must hold each of '
          f'0..{self.size - 1} once, got {devices.size} ids{span}')
    self.devices = devices.reshape(self.shape)

  @property
  def size(self) -> int:
    """Number of devices."""
    return int(np.prod(self.shape, dtype=np.int64))

  def partitions(self, axes: AxisNames) -> int:
    """Number of shards of a dimension that lies along `axes`."""
    return int(np.prod([self.shape[self._axis(a)] for a in as_axes(axes)],
                       dtype=np.int64))

  def _axis(self, name: str) -> int:
    if name not in self.axis_names:
      near = difflib.get_close_matches(name, self.axis_names, n=1)
      hint = f'; did you mean {near[0]!r}?' if near else ''
      raise ShardingError(
          f'the mesh has no axis {name!r}, only {self.axis_names}{hint}')
    return self.axis_names.index(name)

  def tile_assignment(self, dims_mapping: DimsMapping) -> tuple[np.ndarray, bool]:
    """Device ids tiled as a tensor of `len(dims_mapping)` dimensions is.

    Args:
      dims_mapping: mesh axes of each dimension of the tensor.

    Returns:
      The int array of tiles, and whether it has one dimension more than the
      tensor, along which the tensor is replicated.

    Raises:
      ShardingError: an axis is unknown or stands for two dimensions.
    """
    per_dim = [[self._axis(a) for a in as_axes(axes)] for axes in dims_mapping]
    used = [axis for axes in per_dim for axis in axes]
    if len(set(used)) < len(used):
      raise ShardingError(
          f'dims mapping {tuple(dims_mapping)} uses a mesh axis for two '
          'dimensions; give each axis to one dimension')
    unused = [a for a in range(len(self.shape)) if a not in used]
    replicas = int(np.prod([self.shape[a] for a in unused], dtype=np.int64))
    tiles = [self.partitions(axes) for axes in dims_mapping]
    partial = replicas > 1
    return (self.devices.transpose(used + unused)
            .reshape(tiles + [replicas] * partial), partial)

  def __repr__(self):
    axes = ', '.join(f'{n}={s}' for n, s in zip(self.axis_names, self.shape))
    return f'Mesh({axes})'


def as_axes(axes: AxisNames) -> tuple[str, ...]:
  """The mesh axes of one dimension as a tuple, empty where it is unsharded."""
  if axes is None:
    return ()
  return (axes,) if isinstance(axes, str) else tuple(axes)


def _emit(x: tf.Tensor, sharding: tf_xla_sharding.Sharding) -> tf.Tensor:
  return sharding.apply_to_tensor(x, use_sharding_op=True)


def mesh_split(x: tf.Tensor, mesh: Mesh | None, dims_mapping: DimsMapping) -> tf.Tensor:
  """Lays the dimensions of `x` along axes of `mesh`.

  Args:
    x: tensor of any type and of static rank.
    mesh: the mesh, or None for no annotation.
    dims_mapping: for each dimension of `x` None, the name of a mesh axis, or a
      tuple of names (major to minor).

  Returns:
    A tensor equal to `x`, annotated; `x` itself if `mesh` is None.

  Raises:
    ShardingError: the mapping's length is not the rank of `x`, or an axis is
      unknown or used twice.
  """
  if mesh is None:
    return x
  if len(dims_mapping) != x.shape.rank:
    raise ShardingError(
        f'{len(dims_mapping)} entries in dims mapping {tuple(dims_mapping)} for '
        f'a tensor of shape {x.shape}; give one entry for each dimension')
  tiles, partial = mesh.tile_assignment(dims_mapping)
  if all(not as_axes(axes) for axes in dims_mapping):
    return _emit(x, tf_xla_sharding.Sharding.replicate())
  tile = (tf_xla_sharding.Sharding.partial_tile
          if partial else tf_xla_sharding.Sharding.tile)
  return _emit(x, tile(tiles))


def split(x: tf.Tensor, dim: int, num_partitions: int) -> tf.Tensor:
  """Splits dimension `dim` of `x` over `num_partitions` devices (section 3.2).

  Args:
    x: tensor of static rank.
    dim: the dimension, negative from the end.
    num_partitions: number of devices of the program.

  Returns:
    A tensor equal to `x`, annotated.

  Raises:
    ShardingError: `x` has no such dimension.
  """
  rank = x.shape.rank
  if not -rank <= dim < rank:
    raise ShardingError(f'dimension {dim} of a tensor of shape {x.shape}; '
                        f'choose one from {-rank} to {rank - 1}')
  mapping = [None] * rank
  mapping[dim] = 'split'
  return mesh_split(x, Mesh((num_partitions,), ('split',)), mapping)


def replicate(x: tf.Tensor) -> tf.Tensor:
  """Keeps a whole copy of `x` on every device (section 3.2).

  Args:
    x: any tensor.

  Returns:
    A tensor equal to `x`, annotated.
  """
  return _emit(x, tf_xla_sharding.Sharding.replicate())


def shard(x: tf.Tensor, device_assignment: np.ndarray) -> tf.Tensor:
  """Splits `x` by an explicit array of devices (section 3.2).

  Args:
    x: tensor of static rank.
    device_assignment: int array of the rank of `x`; element [i, j, ...] is the
      device that holds shard i of the first dimension, j of the second, ...

  Returns:
    A tensor equal to `x`, annotated.

  Raises:
    ShardingError: the ranks differ, or the ids are not a permutation.
  """
  device_assignment = np.asarray(device_assignment)
  axes = [f'd{i}' for i in range(device_assignment.ndim)]
  return mesh_split(x, Mesh(device_assignment.shape, axes, device_assignment), axes)


class Partitioning(NamedTuple):
  """The mesh and the table in force."""
  mesh: Mesh | None
  table: ShardingTable

  def axes(self, letters: str) -> DimsMapping:
    """The dims mapping of `letters`.

    Args:
      letters: a key of the table: a letter for each dimension, and where one
        tensor is laid out in two ways a suffix (`vm_lookup`).

    Returns:
      For each letter its mesh axes.

    Raises:
      ShardingError: the table has no such key, or its entry another length.
    """
    if letters not in self.table:
      near = difflib.get_close_matches(letters, self.table, n=1)
      hint = f'; did you mean {near[0]!r}?' if near else ''
      raise ShardingError(f'the sharding table has no entry {letters!r}, only '
                          f'{", ".join(sorted(self.table))}{hint}')
    mapping = tuple(self.table[letters])
    rank = len(letters.partition('_')[0])
    if len(mapping) != rank:
      raise ShardingError(f'the sharding table maps {letters!r}, {rank} '
                          f'dimensions, to {len(mapping)} entries {mapping}')
    return mapping


class _Stack(threading.local):

  def __init__(self):
    self.entries = [Partitioning(None, {})]


_STACK = _Stack()


@contextlib.contextmanager
def partitioning(mesh: Mesh | None, table: ShardingTable):
  """Sets the mesh and the table that `annotate` uses inside the context."""
  _STACK.entries.append(Partitioning(mesh, table))
  try:
    yield
  finally:
    _STACK.entries.pop()


def current() -> Partitioning:
  """The mesh and the table in force; the mesh is None outside `partitioning`."""
  return _STACK.entries[-1]


def annotate(x: tf.Tensor, letters: str) -> tf.Tensor:
  """Annotates `x` as the table in force says for `letters`.

  Args:
    x: tensor of the rank of the letters.
    letters: a key of the table, see `Partitioning.axes`.

  Returns:
    A tensor equal to `x`, annotated; `x` itself where no mesh is in force.

  Raises:
    ShardingError: as `mesh_split` and `Partitioning.axes`.
  """
  here = current()
  if here.mesh is None:
    return x
  with tf.name_scope(letters):  # tells the annotation in the partitioned program
    return mesh_split(x, here.mesh, here.axes(letters))
