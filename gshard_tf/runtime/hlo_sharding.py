"""Reading the operations of a lowered program, and the shardings that stand on them."""

import re
from typing import Iterator

from jax._src.lib import xla_client
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import sdy
import numpy as np

from gshard_tf import device_mesh

MESH = 'mesh'  # the name by which JAX finds a program's mesh


class PartitionerError(ValueError):
  """A program that the partitioner is not for, or a partitioner that is unknown."""


def operations(op) -> Iterator:
  """All operations below `op`, outer before inner."""
  for region in op.regions:
    for block in region:
      for inner in block:
        yield inner.operation
        yield from operations(inner.operation)


def is_call(op, target: str) -> bool:
  """Whether `op` is the custom call `target`."""
  return (op.name == 'stablehlo.custom_call' and
          ir.StringAttr(op.attributes['call_target_name']).value == target)


def name(op) -> str:
  """The operation of StableHLO, and of TensorFlow that it is from."""
  origin = re.search(r'"([^"]+)"', str(op.location))
  return f'{op.name} of {origin[1]}' if origin else op.name


def attribute(op, mesh: device_mesh.Mesh) -> sdy.TensorShardingAttr:
  """The sharding of a custom call as Shardy says it.

  Args:
    op: with the attribute `mhlo.sharding`.
    mesh: of the run.

  Returns:
    The attribute.

  Raises:
    PartitionerError: see `dims_mapping`.
  """
  text = ir.StringAttr(op.attributes['mhlo.sharding']).value
  mapping = dims_mapping(text, ir.RankedTensorType(op.results[0].type).rank, mesh)
  return sdy.TensorShardingAttr.get(MESH, [
      sdy.DimensionShardingAttr.get([sdy.AxisRefAttr.get(a) for a in axes], is_closed=True)
      for axes in mapping])


def tile_assignment(text: str) -> np.ndarray | None:
  """The devices by tile.

  Args:
    text: such as `{devices=[1,4,2]<=[8] last_tile_dim_replicate}`.

  Returns:
    int array; None if the sharding has no tiles.
  """
  sharding = xla_client.HloSharding.from_string(text)
  if not sharding.is_tiled():
    return None
  return np.reshape(sharding.tile_assignment_devices(), sharding.tile_assignment_dimensions())


def dims_mapping(text: str, rank: int, mesh: device_mesh.Mesh) -> device_mesh.DimsMapping:
  """Finds the mesh axes in a sharding of device numbers.

  Args:
    text: such as `{devices=[1,4,2]<=[8] last_tile_dim_replicate}`.
    rank: of the tensor.
    mesh: of the run.

  Returns:
    For each dimension a tuple of axes.

  Raises:
    PartitionerError: the tiles do not lie along axes of the mesh.
  """
  tiles = tile_assignment(text)
  if tiles is None or mesh.size == 1:
    return ((),) * rank
  found = [[] for _ in range(tiles.ndim)]
  for axis, name in enumerate(mesh.axis_names):
    if mesh.shape[axis] > 1 and tiles.size == mesh.size:
      # One step along the axis from place 0 is some steps along one dimension of the tiles.
      place = [0] * len(mesh.shape)
      place[axis] = 1
      tile, = np.argwhere(tiles == mesh.places[tuple(place)])
      found[int(np.argmax(tile))].append((int(tile.max()), name))
  mapping = tuple(tuple(name for _, name in sorted(axes, reverse=True)) for axes in found[:rank])
  expected, _ = mesh.tile_assignment(mapping)
  if expected.shape[:rank] != tiles.shape[:rank] or not np.array_equal(
      expected.flatten(), tiles.flatten()):
    raise PartitionerError(
        f'the annotation {text} does not lie along the axes of {mesh}, as Shardy wants it; lower '
        'for the mesh of the run, or set --partitioner=gspmd')
  return mapping
