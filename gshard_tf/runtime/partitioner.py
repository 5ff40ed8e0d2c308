"""Which of XLA's two partitioners completes a program: Shardy or GSPMD.

Programs are lowered with annotations in the form that both the TPU runtime of
TensorFlow and GSPMD read: custom calls with tiles of device numbers. Shardy
wants names of mesh axes; XLA, if it is asked to use Shardy on the others,
quietly falls back to GSPMD. So for Shardy the annotations are rewritten here.

Programs with manual regions are left to GSPMD under either setting: Shardy wants
such a region as one operation with a body, and theirs begin and end at each
tensor, wherever it stands.
"""

import dataclasses

import jax
from jax import export
from jax._src.export import _export
from jax._src.interpreters import mlir
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import sdy

from gshard_tf import device_mesh
from gshard_tf.runtime import hlo_sharding
from gshard_tf.runtime import manual_ops
from gshard_tf.runtime import xla_faults
from gshard_tf.runtime.hlo_sharding import PartitionerError

NAMES = ('shardy', 'gspmd')


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
    PartitionerError: an annotation cannot be said in axes of the mesh, a manual
      region uses what was not entered, or XLA would compute something wrong.
  """
  manual = manual_ops.present(exported.mlir_module_serialized)
  shardy = in_use() == 'shardy' and not manual
  suspect = mesh.size > 1 and xla_faults.possible(exported.mlir_module_serialized)
  if not (shardy or suspect or manual):
    return exported
  logical = device_mesh.Mesh(mesh.devices.shape, mesh.axis_names)
  with mlir.make_ir_context(), ir.Location.unknown():
    module = exported.mlir_module(serialized=False)
    if suspect:
      xla_faults.check(module, logical, shardy)
    if manual:
      manual_ops.separate(module)
    if shardy:
      _constrain(module, logical)
    # pylint: disable-next=protected-access
    return dataclasses.replace(exported, mlir_module_serialized=_export._module_to_bytecode(module))


def _constrain(module, mesh):
  """Replaces annotations by Shardy's."""
  axes = [sdy.MeshAxisAttr.get(*axis) for axis in zip(mesh.axis_names, mesh.shape)]
  with ir.InsertionPoint.at_block_begin(module.body):
    sdy.MeshOp(hlo_sharding.MESH, sdy.MeshAttr.get(axes))
  for op in list(hlo_sharding.operations(module.operation)):
    if hlo_sharding.is_call(op, 'Sharding'):
      with ir.InsertionPoint(op):
        constraint = sdy.ShardingConstraintOp(
            op.operands[0], hlo_sharding.attribute(op, mesh), loc=op.location)
      op.results[0].replace_all_uses_with(constraint.results[0])
      op.erase()
