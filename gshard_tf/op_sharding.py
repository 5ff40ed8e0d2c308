"""XLA's description of a sharding, the OpSharding proto, and the ops that carry it.

A tile assignment says which device holds which tile of a tensor. That of a mesh is
a reshaped and transposed `iota`, 0, 1, 2, ...: a few numbers describe it, however
many devices there are. Only devices that a user lists (`xla_sharding.shard`) in
some other order are written out one by one.
"""

from typing import Sequence

import numpy as np
import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla as tf2xla
from tensorflow.compiler.xla import xla_data_pb2
from tensorflow.core.framework import attr_value_pb2

from gshard_tf import device_mesh

OpSharding = xla_data_pb2.OpSharding
_SUBGROUPS = {'manual': OpSharding.MANUAL, 'replicated': OpSharding.REPLICATED}

REPLICATED = OpSharding(type=OpSharding.REPLICATED)
MANUAL = OpSharding(type=OpSharding.MANUAL)


def tiled(mesh: device_mesh.Mesh, dims_mapping: device_mesh.DimsMapping,
          manual_axes: tuple[str, ...] = ()) -> OpSharding:
  """The sharding of a tensor whose dimensions lie along axes of a mesh.

  Args:
    mesh: the mesh.
    dims_mapping: for each dimension its mesh axes.
    manual_axes: mesh axes along which the program is written for one shard.

  Returns:
    The proto.

  Raises:
    ShardingError: see `Mesh.tile_assignment`.
  """
  tiles, subgroups = mesh.tile_assignment(dims_mapping, manual_axes)
  if max(tiles.shape[:len(dims_mapping)], default=1) == 1:  # along no axis
    if 'manual' not in subgroups:
      return REPLICATED
    if 'replicated' not in subgroups:
      return MANUAL
  sharding = OpSharding(type=OpSharding.OTHER, tile_assignment_dimensions=tiles.shape)
  if subgroups == ('replicated',):
    sharding.replicate_on_last_tile_dim = True
  else:
    sharding.last_tile_dims.extend(_SUBGROUPS[s] for s in subgroups)
  return _assigned(sharding, tiles)


def listed(devices: np.ndarray) -> OpSharding:
  """The sharding of a tensor each of whose shards is on a device of its own.

  Args:
    devices: int array of the rank of the tensor; the device of each shard.

  Returns:
    The proto.

  Raises:
    ShardingError: `devices` are not 0 .. size - 1, each once.
  """
  device_mesh.check_order(devices, devices.shape)
  return _assigned(
      OpSharding(type=OpSharding.OTHER, tile_assignment_dimensions=devices.shape), devices)


def _assigned(sharding, tiles):
  """Fills in who holds which tile."""
  iota = iota_of(tiles)
  if iota is None:
    sharding.tile_assignment_devices.extend(tiles.flatten().tolist())
  else:
    sharding.iota_reshape_dims.extend(iota[0])
    sharding.iota_transpose_perm.extend(iota[1])
  return sharding


def iota_of(tiles: np.ndarray) -> tuple[list[int], list[int]] | None:
  """Recognises a reshaped and transposed iota.

  Args:
    tiles: int array, a permutation of 0 .. size - 1, of any shape.

  Returns:
    `reshape_dims` and `transpose_perm` with which
    `arange(size).reshape(reshape_dims).transpose(transpose_perm)` has the
    elements of `tiles` in the same order; None if there are none.
  """
  rest = tiles.flatten()
  sizes, strides = [], []  # of the factors, minor to major
  while rest.size > 1:
    # A factor is the longest arithmetic run from the start, repeated throughout.
    steps = np.diff(rest)
    breaks = np.flatnonzero(steps != steps[0])
    size = int(breaks[0]) + 1 if breaks.size else rest.size
    if rest.size % size:
      return None
    runs = rest.reshape(-1, size)
    if not np.array_equal(runs - runs[:, :1], np.broadcast_to(runs[0] - runs[0, 0], runs.shape)):
      return None
    sizes.append(size)
    strides.append(int(steps[0]))
    rest = runs[:, 0]
  order = np.argsort(strides)[::-1]  # from the major factor of the iota to its minor one
  reshape_dims = [sizes[i] for i in order] or [1]
  transpose_perm = [int(p) for p in np.argsort(order)[::-1]] or [0]
  iota = np.arange(tiles.size).reshape(reshape_dims).transpose(transpose_perm)
  return (reshape_dims, transpose_perm) if np.array_equal(iota.flatten(), tiles.flatten()) else None


def annotation(x: tf.Tensor, sharding: OpSharding, unspecified_dims: Sequence[int] = ()
               ) -> tf.Tensor:
  """Emits an annotation.

  Args:
    x: any tensor of a graph.
    sharding: what to annotate it with.
    unspecified_dims: dimensions of which the annotation says nothing, so that
      the partitioner may split them further.

  Returns:
    A tensor equal to `x`, annotated, as its gradient will be.

  Raises:
    ShardingError: TensorFlow runs eagerly.
  """
  if tf.executing_eagerly():
    raise device_mesh.ShardingError(
        'an annotation is for a compiled program, and TensorFlow runs eagerly here; call it '
        'inside a tf.function')
  return _carry(sharding, tf2xla.sharding(
      x, sharding=sharding.SerializeToString(), unspecified_dims=list(unspecified_dims)))


def custom_call(target: str, x: tf.Tensor, shape: Sequence[int], sharding: OpSharding,
                unspecified_dims: Sequence[int] = ()) -> tf.Tensor:
  """Emits one of the custom calls that the SPMD partitioner gives a meaning.

  TensorFlow has ops of its own for the two that begin and end a manual region,
  but those know a region of the whole mesh, or of one dimension, alone.

  Args:
    target: the name of the call.
    x: its operand.
    shape: the shape of its result.
    sharding: the sharding of its result.
    unspecified_dims: see `annotation`.

  Returns:
    The result; it has no gradient.
  """
  config = f'unspecified_dims=[{",".join(map(str, unspecified_dims))}]' if unspecified_dims else ''
  y, = tf2xla.custom_call_v2(target, [x], [tf.TensorSpec(shape, x.dtype)], backend_config=config)
  return _carry(sharding, y)


def _carry(sharding, y):
  """Marks the op of `y`, as TensorFlow's own annotations do: what it lowers to has the sharding."""
  y.op._set_attr(  # pylint: disable=protected-access
      '_XlaSharding', attr_value_pb2.AttrValue(s=sharding.SerializeToString()))
  return y
