"""Runs TensorFlow functions on 8 virtual devices, through the lowering of the project."""

import functools

from jax import export
import jax
import numpy as np
import tensorflow as tf

from gshard_tf import lowering
from gshard_tf import xla_sharding
from gshard_tf.runtime import mesh as mesh_lib
from gshard_tf.runtime import partitioner

# Machine code of less speed, sooner; the partitioned program is the same.
FAST = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True,
        'xla_cpu_use_fusion_emitters': False, 'xla_cpu_parallel_codegen_split_count': 1}


def compile_on(mesh: xla_sharding.Mesh, function, *args, options=None, split_results=False):
  """Lowers and compiles a function.

  Args:
    mesh: the devices' names.
    function: from tensors to nested tensors, with annotations.
    *args: nested arrays; they are whole on every device.
    options: more of XLA's compiler options.
    split_results: whether results stay as the program leaves them; otherwise
      they are made whole on every device.

  Returns:
    What jax.jit's `compile` returns.
  """
  structs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype), args)
  exported = export.deserialize(bytearray(lowering.lower(function, *structs)))
  devices = mesh_lib.make(mesh.shape, mesh.axis_names)
  whole = mesh_lib.sharding(devices, ())
  program = partitioner.prepare(exported, devices)
  results = None if split_results else whole
  return jax.jit(program.call, in_shardings=whole, out_shardings=results).lower(
      *structs).compile(FAST | (options or {}))


def value_and_gradients(function, *args):
  """The values of a function, and the gradients of one number that depends on all of them.

  Args:
    function: from tensors to nested tensors.
    *args: tensors.

  Returns:
    What `function` returns, and a gradient for each floating argument.
  """
  floating = [a for a in args if a.dtype.is_floating]
  with tf.GradientTape() as tape:
    tape.watch(floating)
    out = function(*args)
    loss = tf.add_n([tf.cast(tf.reduce_sum(y * _cotangent(y)), tf.float32)
                     for y in tf.nest.flatten(out) if y.dtype.is_floating])
  gradients = tape.gradient(loss, floating, unconnected_gradients=tf.UnconnectedGradients.ZERO)
  return out, [tf.convert_to_tensor(g) for g in gradients]


def _cotangent(y):
  """Numbers that differ from element to element."""
  return tf.reshape(tf.cos(tf.range(1, y.shape.num_elements() + 1, dtype=y.dtype)), y.shape)


def unsharded(function, *args, jit_compile=False):
  """`value_and_gradients` by TensorFlow, floating arguments in float64."""
  wide = [tf.constant(a, tf.float64) if a.dtype == np.float32 else tf.constant(a) for a in args]
  run = tf.function(functools.partial(value_and_gradients, function), autograph=False,
                    jit_compile=jit_compile)
  return tf.nest.map_structure(lambda x: x.numpy(), run(*wide))


def assert_close(got, want, tolerance, name=''):
  """Compares nested arrays; `tolerance` is relative to the largest number of each."""
  got, want = jax.tree.leaves(got), jax.tree.leaves(want)
  assert len(got) == len(want), name
  for g, w in zip(got, want):
    g, w = np.asarray(g), np.asarray(w)
    assert g.shape == w.shape, name
    if g.dtype.kind in 'iub':
      np.testing.assert_array_equal(g, w, err_msg=name)
    else:
      np.testing.assert_allclose(
          g, w, rtol=0, atol=tolerance * max(1., np.abs(w).max(initial=0.)), err_msg=name)
