"""Programs that XLA's partitioner is known to compile wrongly, refused.

Found by the parity tests with jaxlib 0.10.2. Each has a smallest example among
the tests, which fail once XLA is mended, and a way around, which the error names.
"""

from jax.extend.mlir import ir
import numpy as np

from gshard_tf import device_mesh
from gshard_tf.runtime import hlo_sharding
from gshard_tf.runtime.hlo_sharding import PartitionerError

_SUSPECTS = (b'select_and_scatter', b'reduce_window', b'convolution', b'dot_general')


def possible(serialized: bytes) -> bool:
  """Whether a serialised program has operations that `check` looks at."""
  return any(name in serialized for name in _SUSPECTS)


def check(module: ir.Module, mesh: device_mesh.Mesh, shardy: bool):
  """Refuses a program that would give wrong results.

  Args:
    module: the lowered program.
    mesh: the mesh of several devices that it is for.
    shardy: whether Shardy will partition it, or GSPMD.

  Raises:
    PartitionerError: it has one of the faults.
  """
  windows = {}
  operations = list(hlo_sharding.operations(module.operation))
  products = any(op.name in ('stablehlo.dot_general', 'stablehlo.convolution') for op in operations)
  for op in operations:
    if op.name == 'stablehlo.select_and_scatter':
      _overlapping_selection(op)
    elif op.name == 'stablehlo.reduce_window':
      _shared_operand(op, windows)
    elif op.name == 'stablehlo.convolution' and shardy:
      _batch_groups(op, mesh)
    elif products and hlo_sharding.is_call(op, 'Sharding'):
      _unordered_tiles(op)


def check_manual(op, sharding: str):
  """Refuses an operation of a manual region on which the partitioner aborts.

  Args:
    op: the operation.
    sharding: that of tensors inside the region.

  Raises:
    PartitionerError: it sorts several tensors together, as TensorFlow's sort and
      top-k do, along axes that are not all of the mesh.
  """
  if op.name == 'stablehlo.sort' and len(op.results) > 1 and 'last_tile_dims' in sharding:
    raise PartitionerError(
        f'{hlo_sharding.name(op)}, a sort or top-k in a manual region along some axes of the mesh: '
        'XLA aborts on it; open the region along all axes, manual_region(mesh)')


def _overlapping_selection(op):
  """Windows over two shards: each adds what it selects, and part of that is lost."""
  size = _ints(op, 'window_dimensions')
  stride = _ints(op, 'window_strides') or [1] * len(size)
  if any(n > s for n, s in zip(size, stride)):
    raise PartitionerError(
        f'the gradient of a maximum over windows of {size} with strides {stride}: XLA computes '
        'it wrongly where windows overlap across devices; take the maximum over patches '
        '(tf.image.extract_patches) instead')


def _shared_operand(op, windows):
  """The halo is kept by operand and window alone, whatever it was padded with."""
  operand, initial = op.operands[:len(op.operands) // 2], op.operands[len(op.operands) // 2:]
  attributes = tuple(sorted(f'{name}={op.attributes[name]}' for name in op.attributes
                            if name.startswith(('window', 'base', 'padding'))))
  first = windows.setdefault((tuple(map(_source, operand)), attributes), initial)
  if any(_constant(a) != _constant(b) for a, b in zip(first, initial)):
    raise PartitionerError(
        'two cumulative or window reductions of one tensor from different initial values (a sum '
        'and a product, say): XLA gives the second the padding of the first; annotate the tensor '
        'anew for the second')


def _batch_groups(op, mesh):
  """Under Shardy it is summed over the devices that lie along the features, too."""
  groups = ir.IntegerAttr(op.attributes['batch_group_count']).value
  sizes = [n for n in mesh.shape if n > 1]
  if groups > 1 and len(sizes) > 1 and any(groups % n for n in sizes):
    raise PartitionerError(
        f'the gradient of a convolution by channel of {groups} channels on {mesh}: under Shardy '
        f'XLA computes it wrongly where an axis does not divide the channels; set '
        '--partitioner=gspmd, or pad the channels')


def _unordered_tiles(op):
  """A product takes copies to be in the order of their devices, where tiles are in another."""
  text = ir.StringAttr(op.attributes['mhlo.sharding']).value
  tiles = hlo_sharding.tile_assignment(text)
  if tiles is not None and sum(n > 1 for n in tiles.shape) > 1 and any(
      (np.diff(tiles, axis=i) < 0).any() for i in range(tiles.ndim)):
    raise PartitionerError(
        f'the annotation {text} beside products of matrices: XLA computes these wrongly where '
        'device numbers do not grow along each dimension of the tiles; name axes in the order that '
        'they have in the mesh, and give an order of devices to the mesh')


def _ints(op, name):
  if name not in op.attributes:
    return []
  return list(ir.DenseI64ArrayAttr(op.attributes[name]))


def _source(value):
  """What `value` is, behind conversions to its own type, which TensorFlow emits by the dozen."""
  while not isinstance(value.owner, ir.Block):
    op = value.owner.operation
    if op.name not in ('stablehlo.convert', 'stablehlo.reshape') or op.operands[0].type != value.type:
      break
    value = op.operands[0]
  return value


def _constant(value):
  """A scalar's number; if it is not a constant, what it is."""
  value = _source(value)
  if isinstance(value.owner, ir.Block) or value.owner.operation.name != 'stablehlo.constant':
    return value
  return str(value.owner.operation.attributes['value'])
