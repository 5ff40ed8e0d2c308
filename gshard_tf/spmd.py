"""From an annotated TensorFlow function to a program for several devices, in one call.

  mesh = Mesh((4, 2), ('x', 'y'))
  run = spmd.compile(function, mesh, x, w)
  y = run(x, w)

The devices are those that JAX has; `jax.config.update('jax_num_cpu_devices', 8)`
before anything else makes eight of a CPU.
"""

import glob
import os
import re
import tempfile
from typing import Callable, Sequence

from jax import export
import jax
import numpy as np

from gshard_tf import lowering
from gshard_tf import xla_sharding
from gshard_tf.runtime import mesh as mesh_lib
from gshard_tf.runtime import partitioner


def compile(function: Callable, mesh: xla_sharding.Mesh, *args,  # pylint: disable=redefined-builtin
            dims_mappings: Sequence | None = None, split_results: bool = False,
            options: dict | None = None):
  """Lowers, partitions and compiles a TensorFlow function.

  Args:
    function: takes and returns nested dicts and lists of tensors.
    mesh: the mesh that its annotations are for.
    *args: nested arrays, or anything with a shape and a dtype.
    dims_mappings: how the arguments lie on the devices when it is called: for
      each a dims mapping, whose axes must divide its dimensions, or None for
      whole on every device, as all are by default.
    split_results: whether results stay on the devices as the program leaves
      them; by default they are made whole on every device.
    options: XLA's compiler options.

  Returns:
    The compiled program, a `jax.stages.Compiled`: call it with arrays.

  Raises:
    ShardingError, LoweringError, MeshError, PartitionerError: see their modules.
  """
  structs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), _dtype(x)), args)
  exported = export.deserialize(bytearray(lowering.lower(function, *structs)))
  devices = mesh_lib.make(mesh.shape, mesh.axis_names, order=mesh.devices)
  place = lambda mapping: mesh_lib.sharding(devices, map(xla_sharding.as_axes, mapping or ()))
  whole = place(None)
  jitted = jax.jit(
      partitioner.prepare(exported, devices).call,
      in_shardings=tuple(map(place, dims_mappings)) if dims_mappings else whole,
      out_shardings=None if split_results else whole)
  return jitted.lower(*structs).compile(options)


def program_text(function: Callable, mesh: xla_sharding.Mesh, *args, **kwargs) -> str:
  """What the partitioner made of a function, before XLA optimises it.

  Args:
    function: see `compile`.
    mesh: see `compile`.
    *args: see `compile`.
    **kwargs: see `compile`.

  Returns:
    The HLO of one device, without layouts and origins.
  """
  with tempfile.TemporaryDirectory() as folder:
    compile(function, mesh, *args, **kwargs, options={
        'xla_dump_to': folder, 'xla_dump_hlo_pass_re': 'spmd-partitioning'})
    path, = glob.glob(os.path.join(folder, '*after_spmd-partitioning*'))
    with open(path) as f:
      text = f.read()
  text = re.sub(r', (metadata|frontend_attributes)=\{[^}]*\}', '', text)
  text = re.sub(r'(\[[\d,]*\])\{[\d,]*\}', r'\1', text)  # layouts
  text = re.sub(r'(?m)^(FileNames|FunctionNames|FileLocations|StackFrames)\n(\d+ .*\n)*', '', text)
  return re.sub(r'\n{3,}', '\n\n', text)


def _dtype(x):
  dtype = getattr(x, 'dtype', None)
  return np.asarray(x).dtype if dtype is None else getattr(dtype, 'as_numpy_dtype', dtype)
