"""Which of XLA's two partitioners completes a program: Shardy or GSPMD.

Programs are lowered with annotations in the form that both the TPU runtime of
TensorFlow and GSPMD read, `Sharding` custom calls with tiles of device numbers.
Shardy wants names of mesh axes; XLA, if it is asked to use Shardy on the others,
quietly falls back to GSPMD. So for Shardy the annotations are rewritten here.
"""

import dataclasses

import jax
from jax import export
from jax._src.export import _export
from jax._src.interpreters import mlir
from jax._src.lib import xla_client
from jax._src.lib.mlir import ir
from jax._src.lib.mlir.dialects import sdy
import numpy as np

from gshard_tf import device_mesh

NAMES = ('shardy', 'gspmd')
_MESH = 'mesh'  # the name by which JAX finds a program's mesh


class PartitionerError(ValueError):
  """A partitioner that is unknown, or that a program is not for."""


def use(name: str):
  """Sets the partitioner of all programs that are compiled from here on.

  Args:
    name: one of `NAMES`.

  Raises:
    PartitionerError: it is none of them.
  """
  if name not in NAMES:
    raise PartitionerError(f'--partitioner={name}: give one of {", ".join(NAMES)}')
  jax.config.update('jax_use_shardy_partitioner', name == 'shardy')


def in_use() -> str:
  """The partitioner that programs are compiled with."""
  return NAMES[0] if jax.config.jax_use_shardy_partitioner else NAMES[1]


def prepare(exported: export.Exported, mesh: jax.sharding.Mesh) -> export.Exported:
  """Brings a program into the form that the partitioner in use reads.

  Args:
    exported: a lowered program with `Sharding` custom calls.
    mesh: the mesh that it will run on.

  Returns:
    The program to call.

  Raises:
    PartitionerError: an annotation cannot be said in axes of the mesh.
  """
  if in_use() == 'gspmd':
    return exported
  logical = device_mesh.Mesh(mesh.devices.shape, mesh.axis_names)
  with mlir.make_ir_context(), ir.Location.unknown():
    module = exported.mlir_module(serialized=False)
    axes = [sdy.MeshAxisAttr.get(*axis) for axis in zip(logical.axis_names, logical.shape)]
    with ir.InsertionPoint.at_block_begin(module.body):
      sdy.MeshOp(_MESH, sdy.MeshAttr.get(axes))
    for op in list(_ops(module.operation)):
      if _is_call(op, 'Sharding'):
        _rewrite(op, logical)
    # pylint: disable-next=protected-access
    return dataclasses.replace(exported, mlir_module_serialized=_export._module_to_bytecode(module))


def _ops(op):
  """All operations below `op`, outer before inner."""
  for region in op.regions:
    for block in region:
      for inner in block:
        yield inner.operation
        yield from _ops(inner.operation)


def _is_call(op, target):
  return (op.name == 'stablehlo.custom_call' and
          ir.StringAttr(op.attributes['call_target_name']).value == target)


def _rewrite(op, mesh):
  """Replaces a `Sharding` custom call by a constraint."""
  x = op.operands[0]
  text = ir.StringAttr(op.attributes['mhlo.sharding']).value
  mapping = dims_mapping(text, ir.RankedTensorType(x.type).rank, mesh)
  dims = [sdy.DimensionShardingAttr.get([sdy.AxisRefAttr.get(a) for a in axes], is_closed=True)
          for axes in mapping]
  with ir.InsertionPoint(op):
    constraint = sdy.ShardingConstraintOp(x, sdy.TensorShardingAttr.get(_MESH, dims),
                                          loc=op.location)
  op.results[0].replace_all_uses_with(constraint.results[0])
  op.erase()


def dims_mapping(text: str, rank: int, mesh: device_mesh.Mesh) -> device_mesh.DimsMapping:
  """The mesh axes of each dimension of an annotated tensor.

  Args:
    text: an HLO sharding, such as `{devices=[1,4,2]<=[8] last_tile_dim_replicate}`.
    rank: of the tensor.
    mesh: devices in the order of their numbers.

  Returns:
    For each dimension a tuple of names.

  Raises:
    PartitionerError: the tiles do not lie along axes of the mesh.
  """
  sharding = xla_client.HloSharding.from_string(text)
  if sharding.is_replicated() or mesh.size == 1:
    return ((),) * rank
  tiles = np.reshape(sharding.tile_assignment_devices(), sharding.tile_assignment_dimensions())
  found = [[] for _ in range(tiles.ndim)]
  for axis, name in enumerate(mesh.axis_names):
    if mesh.shape[axis] > 1:
      # One step along the axis from device 0 is one step along a dimension of the tiles.
      place = [0] * len(mesh.shape)
      place[axis] = 1
      tile, = np.argwhere(tiles == mesh.devices[tuple(place)])
      dim = int(np.argmax(tile))
      found[dim].append((int(tile[dim]), name))
  mapping = tuple(tuple(name for _, name in sorted(axes, reverse=True)) for axes in found[:rank])
  expected, _ = mesh.tile_assignment(mapping)
  if not np.array_equal(expected.flatten(), tiles.flatten()):
    raise PartitionerError(
        f'the annotation {text} does not lie along the axes of {mesh}, which Shardy needs; lower '
        'for the mesh and the device order of the run, or set --partitioner=gspmd')
  return mapping
