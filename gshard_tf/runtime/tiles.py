"""XLA's shardings and groups of devices, told in the names of mesh axes.

Devices are numbered as the mesh has them, row-major.
"""

import dataclasses
import re

import numpy as np

# For each dimension of a tensor the names of the mesh axes it lies along, major
# to minor.
Axes = tuple[tuple[str, ...], ...]

_IOTA = re.compile(r'<=\[([\d,]+)\](?:T\(([\d,]+)\))?')


@dataclasses.dataclass(frozen=True)
class Mesh:
  """The sizes and the names of the axes of a mesh."""
  sizes: tuple[int, ...]
  names: tuple[str, ...]

  def parts(self, axes: tuple[str, ...]) -> int:
    """Number of shards of a dimension that lies along `axes`."""
    return int(np.prod([self.sizes[self.names.index(a)] for a in axes], dtype=np.int64))

  def shard(self, dims: tuple[int, ...], axes: Axes) -> tuple[int, ...]:
    """The shape of the largest shard of a tensor of shape `dims`."""
    return tuple(-(-n // self.parts(a)) for n, a in zip(dims, axes))

  def steps(self):
    """Yields each axis that has a second device, and that device."""
    for name, size, stride in zip(self.names, self.sizes, _strides(self.sizes)):
      if size > 1:
        yield name, int(stride)


def axes_of_sharding(text: str, rank: int, mesh: Mesh) -> Axes | None:
  """Reads a sharding.

  Args:
    text: as HLO has it, such as `{devices=[4,1,2]<=[8] last_tile_dim_replicate}`.
    rank: of the tensor.
    mesh: the mesh.

  Returns:
    The axes of each dimension; None for tiles that do not follow the mesh.
  """
  found = re.search(r'devices=\[([\d,]+)\]((?:\d|<=).*?)(?: |\}|$)', text)
  if not found:  # replicated, or on one device
    return ((),) * rank
  tiles = _devices(found[2]).reshape([int(n) for n in found[1].split(',')])
  # For each device the tile it has: int [devices, rank].
  tile_of = np.argwhere(np.ones_like(tiles))[np.argsort(tiles, axis=None), :rank]
  strides = {name: tile_of[device] - tile_of[0] for name, device in mesh.steps()}
  place = np.argwhere(np.ones(mesh.sizes))
  told = sum((place[:, [mesh.names.index(n)]] * stride for n, stride in strides.items()),
             np.zeros_like(tile_of))
  if not np.array_equal(told, tile_of):
    return None
  return tuple(tuple(sorted((n for n in strides if strides[n][d]), key=lambda n: -strides[n][d]))
               for d in range(rank))


def groups(text: str, partitions: int) -> tuple[tuple[int, ...], ...]:
  """Reads the groups of devices between which a collective goes.

  Args:
    text: what follows the operands of the instruction.
    partitions: number of devices of the program.

  Returns:
    The groups; of a collective-permute pairs of sender and receiver.
  """
  key = re.search(r'(?:replica_groups|source_target_pairs)=', text)
  text = text[key.end():] if key else '{}'
  if found := re.match(r"mesh\[(.*?)\].*?\{(.*?)\}", text):
    sizes = {n: int(s) for n, s in re.findall(r"'([^']+)'=(\d+)", found[1])}
    along = re.findall(r"'([^']+)'", found[2])
    order = [list(sizes).index(n) for n in sizes if n not in along]
    order += [list(sizes).index(n) for n in along]
    return _rows(np.arange(partitions).reshape(list(sizes.values())).transpose(order),
                 int(np.prod([sizes[n] for n in along], dtype=np.int64)))
  if found := re.match(r'\[(\d+),(\d+)\](<=\S+?\](?:T\([\d,]+\))?)', text):
    return _rows(_devices(found[3]), int(found[2]))
  listed = re.match(r'\{((?:\{[\d,]*\},?)*)\}', text)
  rows = re.findall(r'\{([\d,]+)\}', listed[1]) if listed else []
  return tuple(tuple(map(int, row.split(','))) for row in rows) or (tuple(range(partitions)),)


def axes_of_groups(rows: tuple[tuple[int, ...], ...], mesh: Mesh) -> tuple[str, ...]:
  """The mesh axes along which groups lie; empty where they follow none."""
  first = next((set(row) for row in rows if 0 in row), set())
  names = tuple(name for name, device in mesh.steps() if device in first)
  return names if mesh.parts(names) == len(first) else ()


def _devices(text):
  """`0,2,1,3` or `<=[2,2]T(1,0)` to an int array."""
  if found := _IOTA.match(text):
    dims = [int(n) for n in found[1].split(',')]
    order = [int(n) for n in (found[2] or ','.join(map(str, range(len(dims))))).split(',')]
    return np.arange(np.prod(dims)).reshape(dims).transpose(order)
  return np.array([int(n) for n in text.split(',') if n])


def _rows(devices, width):
  return tuple(map(tuple, devices.reshape(-1, width).tolist()))


def _strides(sizes):
  return np.cumprod((1, *sizes[:0:-1]))[::-1]
