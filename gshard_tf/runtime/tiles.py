"""XLA's shardings and groups of devices, told in the names of mesh axes."""

import re

import numpy as np

from gshard_tf import device_mesh

# For each dimension of a tensor the mesh axes it lies along, major to minor.
Axes = tuple[tuple[str, ...], ...]

_SHARDING = re.compile(r'devices=\[([\d,]+)\](<=\S+|[\d,]+)')
_IOTA = re.compile(r'<=\[([\d,]+)\](?:T\(([\d,]+)\))?')
_GROUPS = re.compile(r'(?:replica_groups|source_target_pairs)='
                     r'(?:mesh\[(?P<mesh>.*?)\].*?\{(?P<along>.*?)\}'
                     r'|\[\d+,(?P<width>\d+)\](?P<iota><=\[[\d,]+\](?:T\([\d,]+\))?)'
                     r'|\{(?P<listed>(?:\{[\d,]*\},?)*)\})')


def shard(mesh: device_mesh.Mesh, dims: tuple[int, ...], axes: Axes) -> tuple[int, ...]:
  """The shape of the largest shard of a tensor of shape `dims`."""
  return tuple(-(-n // mesh.partitions(a)) for n, a in zip(dims, axes))


def axes_of_sharding(text: str, rank: int, mesh: device_mesh.Mesh) -> Axes | None:
  """Reads a sharding.

  Args:
    text: as HLO has it, such as `{devices=[4,1,2]<=[8] last_tile_dim_replicate}`.
    rank: of the tensor.
    mesh: the mesh.

  Returns:
    The axes of each dimension; None for tiles that do not follow the mesh.
  """
  found = _SHARDING.search(text)
  if not found:  # replicated, or on one device
    return ((),) * rank
  tiles = _devices(found[2].rstrip('}')).reshape([int(n) for n in found[1].split(',')])
  # int [devices, rank]: the tile of each place.
  tile = np.argwhere(np.ones_like(tiles))[np.argsort(tiles, axis=None)][:, :rank]
  place = np.argwhere(np.ones(mesh.shape))  # int [devices, axes of the mesh]
  # By how many tiles of each dimension the second device of each axis is off the first.
  steps = {name: tile[(place[:, a] == 1).argmax()] - tile[0] for a, name in enumerate(mesh.axis_names)}
  if not np.array_equal(place @ np.stack(list(steps.values())), tile):
    return None
  return tuple(tuple(sorted((n for n, step in steps.items() if step[d]),
                            key=lambda n: -steps[n][d]))  # pylint: disable=cell-var-from-loop
               for d in range(rank))


def groups(text: str, partitions: int) -> np.ndarray:
  """Reads the groups of devices between which a collective goes.

  Args:
    text: what follows the operands of the instruction.
    partitions: number of devices of the program.

  Returns:
    int [groups, size]; of a collective-permute pairs of sender and receiver.
  """
  found = _GROUPS.search(text)
  if found and found['mesh']:
    sizes = {n: int(s) for n, s in re.findall(r"'([^']+)'=(\d+)", found['mesh'])}
    along = re.findall(r"'([^']+)'", found['along'])
    names = [n for n in sizes if n not in along] + along
    devices = np.arange(partitions).reshape(list(sizes.values()))
    return devices.transpose([list(sizes).index(n) for n in names]).reshape(
        -1, int(np.prod([sizes[n] for n in along], dtype=np.int64)))
  if found and found['iota']:
    return _devices(found['iota']).reshape(-1, int(found['width']))
  rows = re.findall(r'\{([\d,]+)\}', found['listed']) if found else []
  return np.array([[int(n) for n in row.split(',')] for row in rows] or [range(partitions)])


def axes_of_groups(rows: np.ndarray, mesh: device_mesh.Mesh) -> tuple[str, ...]:
  """The mesh axes along which groups lie; empty where they follow none."""
  group = rows[(rows == 0).any(1)]
  place = np.argwhere(np.isin(mesh.places, group))  # of the first device's group
  names = tuple(n for a, n in enumerate(mesh.axis_names) if place[:, a].any())
  return names if mesh.partitions(names) == group.size else ()


def _devices(text):
  """`0,2,1,3` or `<=[2,2]T(1,0)` to an int array."""
  if found := _IOTA.match(text):
    dims = [int(n) for n in found[1].split(',')]
    order = [int(n) for n in found[2].split(',')] if found[2] else range(len(dims))
    return np.arange(np.prod(dims)).reshape(dims).transpose(order)
  return np.array([int(n) for n in text.split(',') if n])
