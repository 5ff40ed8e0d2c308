"""Manual regions: code that is written for one shard and not for the whole tensor.

Outside, a tensor has its global shape and the partitioner decides who computes
what. Inside a region, along its mesh axes, every device has a tensor of its own
and runs the code as it stands. It serves where a local computation is wanted
that the partitioner cannot guess: a sort within each shard, say.

  with manual_region(mesh) as region:
    local = region.enter(x, ('data', None))              # one shard of x
    y = region.leave(tf.sort(local, 0), ('data', None))  # a global tensor again

What a region takes from outside, constants apart, must be entered. Devices talk
to each other inside a region by its methods `all_reduce`, `shift` and so on.
They need no collective ops of TensorFlow (`XlaAllReduce` numbers replicas, and a
partitioned program is a single one): each leaves the region and enters it by
another dims mapping, and the partitioner makes the collective. So all of
them have gradients.

Gradients: entering copies a tensor to all devices along the axes that its
mapping lacks, so its gradient is the sum over those. Leaving takes the devices
along axes that the mapping lacks to agree, and counts as their mean.
"""

import contextlib
import threading

import tensorflow as tf

from gshard_tf import op_sharding
from gshard_tf.device_mesh import AxisNames, DimsMapping, Mesh, ShardingError, as_axes


def auto_to_manual(x: tf.Tensor, mesh: Mesh | None, dims_mapping: DimsMapping,
                   axes: AxisNames = None) -> tf.Tensor:
  """Begins a manual region for one tensor.

  Args:
    x: a global tensor of static shape.
    mesh: the mesh, or None outside of any: one device has the whole.
    dims_mapping: for each dimension of `x` the manual axes that it is cut along.
    axes: the axes of the region, by default all of the mesh. Along the others
      the partitioner goes on splitting the shards.

  Returns:
    The shard of each device; `x` itself if `mesh` is None.

  Raises:
    ShardingError: an axis does not divide its dimension or is not of the
      region; or as `xla_sharding.mesh_split`.
  """
  if mesh is None:
    return x
  axes = _region_axes(mesh, axes)
  _check(x, mesh, dims_mapping, axes)
  shape = []
  for dim, along in zip(x.shape, dims_mapping):
    parts = mesh.partitions(along)
    if dim % parts:
      raise ShardingError(
          f'{dim} elements of a dimension of a tensor of shape {x.shape} do not split into '
          f'{parts} equal shards (mesh axes {", ".join(as_axes(along))}) for a manual region; '
          f'pad the dimension to {-(-dim // parts) * parts}, or choose axes that divide {dim}')
    shape.append(dim // parts)
  rest = _unmentioned(axes, dims_mapping)

  @tf.custom_gradient
  def enter(x):
    def gradient(dy):  # each device's own part along `rest`, which a new dimension collects
      parts = manual_to_auto(dy[None], mesh, (rest, *dims_mapping), axes)
      return tf.reduce_sum(parts, 0)
    return _enter(x, mesh, dims_mapping, axes, shape), gradient

  return enter(x)


def manual_to_auto(x: tf.Tensor, mesh: Mesh | None, dims_mapping: DimsMapping,
                   axes: AxisNames = None) -> tf.Tensor:
  """Ends a manual region for one tensor.

  Args:
    x: the shard of each device, of static shape. Along axes of the region that
      `dims_mapping` lacks all devices must have the same.
    mesh: the mesh, or None.
    dims_mapping: for each dimension of `x` the manual axes along which the
      shards are put together.
    axes: the axes of the region, by default all of the mesh.

  Returns:
    A global tensor; `x` itself if `mesh` is None.

  Raises:
    ShardingError: an axis is not of the region; or as `xla_sharding.mesh_split`.
  """
  if mesh is None:
    return x
  axes = _region_axes(mesh, axes)
  _check(x, mesh, dims_mapping, axes)
  shape = [dim * mesh.partitions(along) for dim, along in zip(x.shape, dims_mapping)]
  copies = mesh.partitions(_unmentioned(axes, dims_mapping))

  @tf.custom_gradient
  def leave(x):
    def gradient(dy):
      return auto_to_manual(dy / tf.cast(copies, dy.dtype), mesh, dims_mapping, axes)
    return _leave(x, mesh, dims_mapping, axes, shape), gradient

  return leave(x)


def _region_axes(mesh, axes):
  axes = mesh.axis_names if axes is None else as_axes(axes)
  mesh.tile_assignment((), axes)  # refuses unknown axes
  return axes


def _unmentioned(axes, dims_mapping):
  return tuple(a for a in axes if not any(a in as_axes(along) for along in dims_mapping))


def _check(x, mesh, dims_mapping, axes):
  if not x.shape.is_fully_defined() or x.shape.rank != len(dims_mapping):
    raise ShardingError(
        f'{len(dims_mapping)} entries in dims mapping {tuple(dims_mapping)} for a tensor of '
        f'shape {x.shape}; a manual region needs a static shape and one entry for each dimension')
  strange = [a for along in dims_mapping for a in as_axes(along) if a not in axes]
  if strange:
    raise ShardingError(
        f'dims mapping {tuple(dims_mapping)} of a manual region along {", ".join(axes)} names '
        f'{strange[0]!r}; add it to the axes of the region, or annotate the shard inside')


def _enter(x, mesh, dims_mapping, axes, shape):
  if mesh.partitions(axes) == 1:
    return tf.identity(x)
  free = _free_dims(mesh, dims_mapping, axes)
  x = op_sharding.annotation(x, op_sharding.tiled(mesh, dims_mapping), free)
  inside = op_sharding.tiled(mesh, [None] * len(shape), axes)
  free = range(len(shape)) if free else ()
  return op_sharding.custom_call('SPMDFullToShardShape', x, shape, inside, free)


def _leave(x, mesh, dims_mapping, axes, shape):
  if mesh.partitions(axes) == 1:
    return tf.identity(x)
  free = _free_dims(mesh, dims_mapping, axes)
  inside = op_sharding.tiled(mesh, [None] * len(shape), axes)
  x = op_sharding.annotation(x, inside, range(len(shape)) if free else ())
  return op_sharding.custom_call(
      'SPMDShardToFullShape', x, shape, op_sharding.tiled(mesh, dims_mapping), free)


def _free_dims(mesh, dims_mapping, axes):
  """The dimensions that axes beside those of the region may split."""
  if mesh.partitions(axes) == mesh.size:
    return ()
  return tuple(i for i, along in enumerate(dims_mapping) if not as_axes(along))


class Region:
  """An open manual region.

  Attributes:
    mesh: its mesh, or None: the code runs for the whole.
    axes: its mesh axes.
  """

  def __init__(self, mesh: Mesh | None, axes: AxisNames):
    self.mesh = mesh
    self.axes = () if mesh is None else _region_axes(mesh, axes)

  def enter(self, x: tf.Tensor, dims_mapping: DimsMapping) -> tf.Tensor:
    """The shard of a global tensor; see `auto_to_manual`."""
    return auto_to_manual(x, self.mesh, dims_mapping, self.axes)

  def leave(self, x: tf.Tensor, dims_mapping: DimsMapping) -> tf.Tensor:
    """The global tensor of the devices' shards; see `manual_to_auto`."""
    return manual_to_auto(x, self.mesh, dims_mapping, self.axes)

  def size(self, axes: AxisNames = None) -> int:
    """Number of devices along `axes`, by default all of the region."""
    return 1 if self.mesh is None else self.mesh.partitions(self.axes if axes is None else axes)

  def index(self, axes: AxisNames = None) -> tf.Tensor:
    """int32 []: the place of this device along `axes`, by default all of the region."""
    axes = self.axes if axes is None else axes
    return self.enter(tf.range(self.size(axes)), (axes,))[0]

  def all_reduce(self, x: tf.Tensor, axes: AxisNames = None) -> tf.Tensor:
    """Sums over the devices along `axes`, by default all of the region.

    Args:
      x: of any shape.
      axes: axes of the region.

    Returns:
      Of the shape of `x`, the same on all of these devices.
    """
    axes = self.axes if axes is None else axes
    total = tf.reduce_sum(self._collect(x, axes), 1)
    return self._hand_out(total, [None] * x.shape.rank, axes)

  def reduce_scatter(self, x: tf.Tensor, dim: int, axes: AxisNames = None) -> tf.Tensor:
    """As `all_reduce`, each device keeping its shard of dimension `dim` of the sum."""
    axes = self.axes if axes is None else axes
    total = tf.reduce_sum(self._collect(x, axes), 1)
    return self._hand_out(total, _along(axes, dim, x.shape.rank), axes)

  def all_gather(self, x: tf.Tensor, dim: int, axes: AxisNames = None) -> tf.Tensor:
    """Puts the shards of the devices along `axes` together in dimension `dim`."""
    return self.all_to_all(x, None, dim, axes)

  def all_to_all(self, x: tf.Tensor, split_dim: int | None, concat_dim: int,
                 axes: AxisNames = None) -> tf.Tensor:
    """Sends part i of dimension `split_dim` to device i.

    Args:
      x: of any shape.
      split_dim: the dimension to be cut into as many parts as there are devices;
        None sends all to all.
      concat_dim: the dimension in which a device puts together what it gets.
      axes: axes of the region, by default all.

    Returns:
      `split_dim` is smaller and `concat_dim` larger than in `x` by the number of
      devices along `axes`.
    """
    axes = self.axes if axes is None else axes
    others, rank = self._others(axes), x.shape.rank
    whole = self.leave(x[None], (others, *_along(axes, concat_dim, rank)))
    mapping = [None] * rank if split_dim is None else _along(axes, split_dim, rank)
    return self._hand_out(whole, mapping, axes)

  def shift(self, x: tf.Tensor, by: int, axes: AxisNames = None, wrap: bool = False) -> tf.Tensor:
    """Sends `x` to the device `by` places further along `axes`.

    Args:
      x: of any shape.
      by: places, negative for backwards; fewer than there are devices.
      axes: axes of the region, by default all.
      wrap: whether the last devices send to the first; otherwise these get zeros.

    Returns:
      Of the shape of `x`: what the device `by` places before this one had.
    """
    axes = self.axes if axes is None else axes
    n = self.size(axes)
    by = by % n if wrap else by
    if not by:
      return x
    if abs(by) >= n:
      return tf.zeros_like(x)
    stack = self._collect(x, axes)  # [devices along others, n, ...]
    # Two slices that change places are a rotation, of which the partitioner makes one
    # collective-permute.
    moved = tf.concat([stack[:, -by:], stack[:, :-by]], 1)
    if not wrap:
      origin = tf.range(n) - by
      inside = tf.reshape((origin >= 0) & (origin < n), [1, n] + [1] * x.shape.rank)
      moved = tf.where(inside, moved, tf.zeros_like(moved))
    return self.enter(moved, (self._others(axes), axes, *[None] * x.shape.rank))[0, 0]

  def _others(self, axes):
    return tuple(a for a in self.axes if a not in as_axes(axes))

  def _collect(self, x, axes):
    """The x of all devices as one tensor outside: [devices along others, along `axes`, ...]."""
    return self.leave(x[None, None], (self._others(axes), axes, *[None] * x.shape.rank))

  def _hand_out(self, x, dims_mapping, axes):
    """x [devices along others, ...] to the devices, their shards by `dims_mapping`."""
    return self.enter(x, (self._others(axes), *dims_mapping))[0]


def _along(axes, dim, rank):
  mapping = [None] * rank
  mapping[dim] = axes
  return mapping


class _Open(threading.local):
  region = None


_OPEN = _Open()


def open_region() -> Region | None:
  """The manual region that the calling code stands in."""
  return _OPEN.region


@contextlib.contextmanager
def manual_region(mesh: Mesh | None, axes: AxisNames = None):
  """Opens a manual region.

  Inside, `xla_sharding.mesh_split` annotates shards, along the axes that are
  not the region's.

  Args:
    mesh: the mesh; None runs the same code on the whole tensors.
    axes: its axes that are manual, by default all.

  Yields:
    The `Region`.

  Raises:
    ShardingError: it stands in another region.
  """
  if _OPEN.region is not None and mesh is not None:
    raise ShardingError(f'a manual region along {axes or mesh.axis_names} inside one along '
                        f'{_OPEN.region.axes}; open one region along the axes of both')
  outer, _OPEN.region = _OPEN.region, Region(mesh, axes) if mesh is not None else None
  try:
    yield _OPEN.region or Region(None, axes)
  finally:
    _OPEN.region = outer
