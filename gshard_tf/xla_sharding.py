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

An annotation acts on the gradient of a tensor as on the tensor itself. A dimension
that its devices do not divide is split all the same, the last shards padded.

Code for one shard stands in a manual region (`manual_region`, `auto_to_manual`,
`manual_to_auto`). docs/sharding.md goes through all of it by examples.
"""

import contextlib
import difflib
import threading
from typing import Mapping, NamedTuple

import numpy as np
import tensorflow as tf

from gshard_tf import op_sharding
from gshard_tf.device_mesh import AxisNames, DimsMapping, Mesh, ShardingError, as_axes
from gshard_tf.manual_region import (
    Region, auto_to_manual, manual_region, manual_to_auto, open_region)

__all__ = ['AxisNames', 'DimsMapping', 'Mesh', 'Partitioning', 'Region', 'ShardingError',
           'ShardingTable', 'annotate', 'as_axes', 'auto_to_manual', 'current', 'manual_region',
           'manual_to_auto', 'mesh_split', 'partitioning', 'replicate', 'shard', 'split']

ShardingTable = Mapping[str, DimsMapping]


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
  region = open_region()
  if region is not None and region.mesh != mesh:
    raise ShardingError(f'an annotation for {mesh} in a manual region of {region.mesh}; '
                        'annotate for the mesh of the region')
  return op_sharding.annotation(
      x, op_sharding.tiled(mesh, dims_mapping, region.axes if region else ()))


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
  region = open_region()
  if region is not None:
    return mesh_split(x, region.mesh, [None] * x.shape.rank)
  return op_sharding.annotation(x, op_sharding.REPLICATED)


def shard(x: tf.Tensor, device_assignment: np.ndarray) -> tf.Tensor:
  """Splits `x` by an explicit array of devices (section 3.2).

  Args:
    x: tensor of static rank.
    device_assignment: int array of the rank of `x`; element [i, j, ...] is the
      device that holds shard i of the first dimension, j of the second, ...
      Devices are numbered by their place in the mesh of the run.

  Returns:
    A tensor equal to `x`, annotated.

  Raises:
    ShardingError: the ranks differ, the ids are not a permutation, or a manual
      region is open.
  """
  devices = np.asarray(device_assignment)
  if devices.ndim != x.shape.rank:
    raise ShardingError(f'a device assignment of shape {devices.shape} for a tensor of shape '
                        f'{x.shape}; give one dimension for each')
  region = open_region()
  if region is not None:
    raise ShardingError(f'an assignment of single devices in a manual region of {region.mesh}; '
                        'use mesh_split there')
  return op_sharding.annotation(x, op_sharding.listed(devices))


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
