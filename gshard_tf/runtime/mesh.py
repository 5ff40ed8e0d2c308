"""Devices, meshes of them, and shardings on a mesh."""

import math
from typing import Sequence

import jax
import numpy as np

from gshard_tf import quiet


class MeshError(ValueError):
  """A mesh that cannot be had."""


def parse(text: str, num_axes: int) -> tuple[int, ...] | None:
  """Reads a mesh from the command line.

  Args:
    text: `8`, `4x2` or `auto`.
    num_axes: axes that the experiment has; missing ones have size 1.

  Returns:
    The sizes of the axes, or None for `auto`.

  Raises:
    MeshError: `text` is none of these.
  """
  if text == 'auto':
    return None
  try:
    sizes = tuple(int(n) for n in text.split('x'))
  except ValueError:
    sizes = ()
  if not 1 <= len(sizes) <= num_axes or min(sizes) < 1:
    raise MeshError(f'--mesh={text}: give auto, or 1 to {num_axes} sizes from 1 '
                    'up with x between them, such as 8 or 4x2')
  return sizes + (1,) * (num_axes - len(sizes))


def set_platform(sizes: tuple[int, ...] | None):
  """Sees to it that there are enough devices, before JAX starts.

  Without an accelerator the CPU stands for as many devices as the mesh has.

  Args:
    sizes: the mesh, or None for all devices that there are.
  """
  if sizes is not None:
    jax.config.update('jax_num_cpu_devices', math.prod(sizes))


def automatic(devices: int, num_axes: int, last: int = 1) -> tuple[int, ...]:
  """Sizes of the axes where only the number of devices is known.

  Args:
    devices: how many.
    num_axes: axes of the mesh.
    last: size of the last axis; the first has the rest, others have 1.

  Returns:
    The sizes.

  Raises:
    MeshError: `last` does not divide the devices.
  """
  if devices % last:
    raise MeshError(f'{devices} devices do not split into a last mesh axis of {last}, which the '
                    f'model asks for; give --mesh, or a multiple of {last} devices')
  return (devices // last,) + (1,) * (num_axes - 2) + (last,) if num_axes > 1 else (devices,)


def make(sizes: tuple[int, ...] | None, axis_names: Sequence[str], last: int = 1,
         order: np.ndarray | None = None) -> jax.sharding.Mesh:
  """A mesh of the devices there are.

  Args:
    sizes: sizes of the axes; None for those of `automatic`.
    axis_names: names of the axes.
    last: see `automatic`.
    order: which device stands where, an int array with `prod(sizes)` elements,
      for instance from `gshard_tf.device_order`; as they are numbered by default.
      The programs need not know: their annotations number places in the mesh.

  Returns:
    The mesh.

  Raises:
    MeshError: there are fewer devices than the mesh has, or `order` is none.
  """
  with quiet.libraries():
    devices = jax.devices()
  if sizes is None:
    sizes = automatic(len(devices), len(axis_names), last)
  need = math.prod(sizes)
  if need > len(devices):
    raise MeshError(f'a mesh of {"x".join(map(str, sizes))} needs {need} devices; '
                    f'{len(devices)} of platform {devices[0].platform} are here')
  order = np.arange(need) if order is None else np.asarray(order).flatten()
  if sorted(order) != list(range(need)):
    raise MeshError(f'the device order of a mesh of {"x".join(map(str, sizes))} must hold each of '
                    f'0..{need - 1} once, got {order.size} ids')
  return jax.sharding.Mesh(np.array(devices)[order].reshape(sizes), axis_names)


def sharding(mesh: jax.sharding.Mesh, axes: Sequence[Sequence[str]]) -> jax.sharding.NamedSharding:
  """The sharding of an array whose dimensions lie along `axes` of `mesh`."""
  return jax.sharding.NamedSharding(
      mesh, jax.sharding.PartitionSpec(*(tuple(a) or None for a in axes)))
