"""Orders of the devices of real TPU slices, for meshes whose axes are rings.

A collective along a mesh axis passes data around a ring of devices. On a whole
pod the links of the torus wrap around, and the natural order is a ring. On a
part of a pod the ends of a line are far apart; these orders make rings in which
neighbours stay near each other. The layouts are those of Lingvo's
`GetNonPod2dMesh` and `ZigzagOrderOnDeviceMesh` (lingvo/core/gshard_utils.py).

NumPy only: a mesh of annotations (`xla_sharding.Mesh(..., devices=order)`) and a
mesh of the runtime (`runtime.mesh.make(..., order=order)`) take them alike.
"""

import numpy as np

from gshard_tf.device_mesh import ShardingError


def zigzag(devices: np.ndarray, axis: int = 0) -> np.ndarray:
  """Orders a line without a link between its ends as a ring.

  Every other device on the way there, the others on the way back: 0 2 4 5 3 1,
  so that no two neighbours of the ring are more than two links apart.

  Args:
    devices: int array of any rank.
    axis: along which the devices form the line.

  Returns:
    The array with `axis` reordered.
  """
  n = devices.shape[axis]
  there = np.arange(0, n, 2)
  back = np.arange(1, n, 2)[::-1]
  return np.take(devices, np.concatenate([there, back]), axis)


def slice_2d(rows: int, columns: int, cores: int = 2, wraps: bool = False) -> np.ndarray:
  """The order for a 2-D mesh over a 2-D slice of chips.

  The second mesh axis is a ring over the cores of a row of chips: out by the
  first core of each chip and home by the second. The first axis runs over the
  rows, in zigzag where they do not wrap around.

  Args:
    rows: chips along the first dimension of the slice.
    columns: chips along the second.
    cores: devices of a chip; 2 on TPU v2 and v3, 1 since.
    wraps: whether links join the last row, and the last column, to the first, as
      on a whole pod.

  Returns:
    int array [rows, columns * cores]; devices are numbered by row, column, core.

  Raises:
    ShardingError: a size is smaller than 1, or `cores` neither 1 nor 2.
  """
  if min(rows, columns) < 1 or cores not in (1, 2):
    raise ShardingError(f'a slice of {rows} x {columns} chips of {cores} cores; there must be one '
                        'row and column at least, and a chip has 1 or 2 cores')
  devices = np.arange(rows * columns * cores).reshape(rows, columns, cores)
  if cores == 2:
    ring = np.concatenate([devices[:, :, 0], devices[:, ::-1, 1]], 1)
  else:
    ring = devices[:, :, 0] if wraps else zigzag(devices[:, :, 0], 1)
  return ring if wraps else zigzag(ring, 0)
