"""Meshes of devices, and how tensors are tiled over them. NumPy only."""

import difflib
from typing import Sequence

import numpy as np

# One entry of a dims mapping: unsharded, along one mesh axis, or along several.
AxisNames = None | str | tuple[str, ...]
DimsMapping = Sequence[AxisNames]


class ShardingError(ValueError):
  """An annotation that does not fit its tensor or its mesh."""


def check_order(devices: np.ndarray, shape: Sequence[int]):
  """Refuses a device order.

  Args:
    devices: int array.
    shape: of the mesh that it is for.

  Raises:
    ShardingError: `devices` are not 0 .. prod(shape) - 1, each once.
  """
  size = int(np.prod(shape, dtype=np.int64))
  if not np.array_equal(np.sort(devices, axis=None), np.arange(size)):
    span = f' from {devices.min()} to {devices.max()}' if devices.size else ''
    raise ShardingError(
        f'the device order of a mesh of shape {tuple(shape)} must hold each of '
        f'0..{size - 1} once, got {devices.size} ids{span}')


class Mesh:
  """A named, possibly multi-dimensional array of devices.

  Annotations number the places of the mesh, row by row. Which device stands at
  which place is for the runtime, which builds its mesh from `devices`.

  Attributes:
    shape: sizes of the axes.
    axis_names: one name for each axis.
    places: int array of shape `shape`, 0, 1, 2, ... in row-major order.
    devices: int array of shape `shape`: the device order, the number of the
      device at each place.
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
    self.places = np.arange(self.size).reshape(self.shape)
    devices = self.places if devices is None else np.asarray(devices)
    check_order(devices, self.shape)
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

  def tile_assignment(self, dims_mapping: DimsMapping, manual_axes: Sequence[str] = ()
                      ) -> tuple[np.ndarray, tuple[str, ...]]:
    """Places tiled as a tensor of `len(dims_mapping)` dimensions is.

    Args:
      dims_mapping: mesh axes of each dimension of the tensor.
      manual_axes: axes along which every device has a tensor of its own.

    Returns:
      The int array of tiles, and what its dimensions beyond those of the tensor
      are: `manual`, along `manual_axes`, if there are any; then `replicated`,
      along the axes that are left, if they have more than one device.

    Raises:
      ShardingError: an axis is unknown or stands for two dimensions.
    """
    per_dim = [[self._axis(a) for a in as_axes(axes)] for axes in dims_mapping]
    manual = [self._axis(a) for a in manual_axes]
    manual = [a for a in manual if self.shape[a] > 1]  # one device along an axis is not several
    used = [axis for axes in per_dim for axis in axes] + manual
    if len(set(used)) < len(used):
      also = f' or for one that is manual ({", ".join(manual_axes)})' if manual else ''
      raise ShardingError(
          f'dims mapping {tuple(dims_mapping)} uses a mesh axis for two '
          f'dimensions{also}; give each axis to one dimension')
    tiles = [self.partitions(axes) for axes in dims_mapping]
    subgroups = ()
    if manual:
      subgroups += ('manual',)
      tiles.append(self.partitions(tuple(manual_axes)))
    replicas = self.size // int(np.prod(tiles, dtype=np.int64))
    if replicas > 1:
      subgroups += ('replicated',)
      tiles.append(replicas)
    unused = [a for a in range(len(self.shape)) if a not in used]
    return self.places.transpose(used + unused).reshape(tiles), subgroups

  def __eq__(self, other):
    return (isinstance(other, Mesh) and self.axis_names == other.axis_names
            and np.array_equal(self.devices, other.devices))

  def __hash__(self):
    return hash((self.shape, self.axis_names))

  def __repr__(self):
    axes = ', '.join(f'{n}={s}' for n, s in zip(self.axis_names, self.shape))
    return f'Mesh({axes})'


def as_axes(axes: AxisNames) -> tuple[str, ...]:
  """The mesh axes of one dimension as a tuple, empty where it is unsharded."""
  if axes is None:
    return ()
  return (axes,) if isinstance(axes, str) else tuple(axes)
