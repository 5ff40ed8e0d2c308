"""Keeping manual regions apart from the rest of a program.

XLA learns which operations are manual by propagation from the custom calls at
the ends of a region. It goes through constants, too: a zero that pads a shard
and also begins a sum outside would make that sum manual, and the partitioner
abort. So here constants enter regions as tensors do. On the way it shows
whether a region takes anything else from outside that was not entered.
"""

from jax._src.lib import xla_client
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import stablehlo
import numpy as np

from gshard_tf.runtime import hlo_sharding
from gshard_tf.runtime import xla_faults
from gshard_tf.runtime.hlo_sharding import PartitionerError

_ENTER, _LEAVE = 'SPMDFullToShardShape', 'SPMDShardToFullShape'


def present(serialized: bytes) -> bool:
  """Whether a serialised program has manual regions."""
  return _ENTER.encode() in serialized or _LEAVE.encode() in serialized


def separate(module: ir.Module):
  """Makes the constants that manual operations take enter their regions.

  Args:
    module: a lowered program, changed in place.

  Raises:
    PartitionerError: a region takes a tensor from outside that was not entered.
  """
  done = []
  for op in list(hlo_sharding.operations(module.operation)):
    ends = hlo_sharding.is_call(op, _ENTER) or hlo_sharding.is_call(op, _LEAVE)
    if ends and op.block not in done:
      done.append(op.block)
      _separate([inner.operation for inner in op.block])


def _separate(ops):
  """`ops` are those of one block."""
  manual, constant = {}, set()  # manual operations with the sharding of a tensor of the region
  for op in ops:
    producers = [_producer(v) for v in _taken(op)]
    shardings = [manual[p] for p in producers if p in manual]
    if shardings or _begins(op):
      manual[op] = shardings[0] if shardings else _sharding(op)
    elif all(p in constant for p in producers):
      constant.add(op)
    if hlo_sharding.is_call(op, _LEAVE):
      manual.pop(op)  # its result is outside
  # All are found before any is changed: the hash of an operation is that of its operands.
  wanted = [(op, sharding, _constants(op, manual, constant)) for op, sharding in manual.items()
            if not hlo_sharding.is_call(op, _ENTER)]
  for op, sharding, values in wanted:
    xla_faults.check_manual(op, sharding)
    for value in values:
      _enter(op, value, sharding)


def _begins(op):
  """Whether the result of `op` is manual, whatever its operands are."""
  return hlo_sharding.is_call(op, _ENTER) or (
      hlo_sharding.is_call(op, 'Sharding') and 'manual' in _sharding(op))


def _sharding(op):
  return ir.StringAttr(op.attributes['mhlo.sharding']).value


def _producer(value):
  """The operation whose result `value` is; a block's argument has none."""
  return None if isinstance(value.owner, ir.Block) else value.owner.operation


def _taken(op):
  """The values that `op` takes, those of its regions included that come from outside of it."""
  values = list(op.operands)
  for inner in hlo_sharding.operations(op):
    values += [v for v in inner.operands if not _within(v, op)]
  return values


def _within(value, op):
  owner = value.owner.owner if isinstance(value.owner, ir.Block) else value.owner.operation.parent
  while owner is not None:
    if owner == op:
      return True
    owner = owner.operation.parent
  return False


def _constants(op, manual, constant):
  """The constants that a manual operation takes."""
  found = [v for v in _taken(op) if _producer(v) not in manual]
  for value in found:
    if _producer(value) not in constant:
      raise PartitionerError(
          f'a manual region uses a {value.type} from outside in {hlo_sharding.name(op)}; enter it, '
          'by region.enter(x, dims_mapping)')
  return found


def _enter(op, value, sharding):
  """Gives `op` what a constant is inside its region, where `sharding` is that of some tensor."""
  inside, rank = value, ir.RankedTensorType(value.type).rank
  with ir.InsertionPoint(op), op.location:
    for target, text in (('Sharding', '{replicated}'), (_ENTER, _whole(sharding, rank))):
      call = stablehlo.CustomCallOp([value.type], [inside], target)
      call.attributes['mhlo.sharding'] = ir.StringAttr.get(text)
      inside = call.results[0]
  for user in [op, *hlo_sharding.operations(op)]:
    for i, operand in enumerate(user.operands):
      if operand == value:
        user.operands[i] = inside


def _whole(text, rank):
  """The sharding of a tensor of `rank` dimensions in the same region, whole in it."""
  sharding = xla_client.HloSharding.from_string(text)
  if sharding.is_manual():
    return text
  tiles = hlo_sharding.tile_assignment(text)
  kinds = sharding.subgroup_types()
  at = tiles.ndim - len(kinds) + kinds.index(xla_client.OpSharding.Type.MANUAL)
  tiles = np.moveaxis(tiles, at, 0)
  dims = ','.join(map(str, [1] * rank + [tiles.shape[0], tiles.size // tiles.shape[0]]))
  devices = ','.join(map(str, tiles.flatten()))
  return f'{{devices=[{dims}]{devices} last_tile_dims={{manual, replicated}}}}'
