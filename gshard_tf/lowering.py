"""From a Lingvo task to an artifact: TensorFlow to StableHLO, annotations kept.

`jax2tf.call_tf` turns a compiled tf.function into StableHLO, in which the
annotations stand as `Sharding` custom calls for the SPMD partitioner of the
runtime. The program is lowered for the CPU and holds nothing that depends on
it: no library call, no layout. So it may be compiled for any platform, which
`call_tf` itself does not offer on a machine without that platform.
"""

import os
from typing import Callable

import jax
from jax import export
from jax.experimental import jax2tf
from lingvo.core import optimizer as lingvo_optimizer
from lingvo.core import schedule as lingvo_schedule
import numpy as np
import tensorflow as tf

# Constants of the size of an activation, which a step has many of (zeros), would
# be computed here before they are lowered: 17 GB for the 600B model.
os.environ['TF_XLA_FLAGS'] = f'{os.environ.get("TF_XLA_FLAGS", "")} --tf_xla_disable_constant_folding'

# pylint: disable=g-import-not-at-top
from gshard_tf import artifact
from gshard_tf import train_step
from gshard_tf import xla_sharding


class LoweringError(ValueError):
  """A model that does not fit the mesh, or has no counterpart in the runtime."""


def lower(function: Callable, *args) -> bytes:
  """Lowers a TensorFlow function.

  Args:
    function: takes and returns nested dicts and lists of tensors.
    *args: the arguments' shapes and types, nested jax.ShapeDtypeStruct.

  Returns:
    A serialised `jax.export` program, for any platform.
  """
  called = jax2tf.call_tf(tf.function(function, jit_compile=True, autograph=False),
                          has_side_effects=False)
  exported = export.export(
      jax.jit(called), platforms=['cpu'],
      disabled_checks=[export.DisabledSafetyCheck.platform()])(*args)
  return bytes(exported.serialize())


FUNCTIONS = ('init', 'train', 'evaluate', 'encode', 'decode')


def lower_task(name: str, task_params, mesh: xla_sharding.Mesh, batch: dict,
               inputs: dict, vocabularies: dict, functions=FUNCTIONS,
               languages=()) -> artifact.Artifact:
  """Lowers a translation task.

  Args:
    name: the model's registered name.
    task_params: the task's Params.
    mesh: the mesh to lower for.
    batch: nested dicts of the shapes of a global training batch, all int32.
    inputs: for each data set the path of its corpus.
    vocabularies: paths of the SentencePiece models.
    functions: which of `FUNCTIONS` the artifact will have; `decode` brings
      `encode` with it.
    languages: codes of those by which `evaluate` measures the use of experts.

  Returns:
    The artifact.

  Raises:
    LoweringError: the mesh does not divide the experts or the rows.
  """
  steps = train_step.Steps(task_params.Copy().Set(num_languages=len(languages)), mesh)
  weights = weight_records(steps)
  batch_axes = xla_sharding.as_axes(steps.partitioning.axes('bl')[0])
  rows, parts = batch['src']['ids'][0], task_params.microbatches
  if rows % parts:
    raise LoweringError(f'{rows} rows of a batch do not split into {parts} microbatches; set '
                        f'microbatches to a divisor of {rows}')
  check_rows(mesh, batch_axes, rows // parts, 'rows of a microbatch' if parts > 1 else
             'rows of a batch')
  check_rows(mesh, batch_axes, task_params.decode_rows, 'rows of a decoding step')
  theta = {w.path: jax.ShapeDtypeStruct(w.shape, w.dtype) for w in weights}
  batch_spec = jax.tree.map(lambda s: _int32(*s), batch, is_leaf=lambda s: isinstance(s, tuple))
  programs = {}
  if 'init' in functions:
    programs['init'] = lower(steps.init, _int32())
  if 'train' in functions:
    programs['train'] = lower(steps.train, theta, batch_spec, _int32(), _int32())
  if 'evaluate' in functions:
    language = lambda side: {'language': side['ids']} if languages else {}
    programs['evaluate'] = lower(steps.evaluate, theta, {
        name: side | language(side) for name, side in batch_spec.items()})
  if 'decode' in functions:
    programs |= _lower_decoding(steps, theta, batch)
  return artifact.Artifact(
      model=name, mesh_shape=mesh.shape, mesh_axes=mesh.axis_names, weights=weights,
      batch=batch, batch_axes=batch_axes, decode_rows=task_params.decode_rows,
      optimizer=optimizer_settings(task_params.train), inputs=inputs,
      vocabularies=vocabularies, functions=programs, languages=tuple(languages))


def _lower_decoding(steps, theta, batch):
  """The programs `encode` and `decode`, which takes what the first returns."""
  rows = steps.params.decode_rows
  encode = lower(steps.encode, theta, _int32(rows, batch['src']['ids'][1]))
  encoded = export.deserialize(bytearray(encode))
  shape = lambda x, dtype: jax.ShapeDtypeStruct(tuple(x.shape), dtype)
  source = jax.tree.map(lambda a: shape(a, a.dtype),
                        jax.tree.unflatten(encoded.out_tree, encoded.out_avals))
  with tf.Graph().as_default():
    caches = jax.tree.map(lambda x: shape(x, x.dtype.as_numpy_dtype),
                          steps.empty_caches(rows, batch['tgt']['ids'][1]))
  return dict(encode=encode,
              decode=lower(steps.decode, theta, source, caches, _int32(rows), _int32()))


def _int32(*shape):
  return jax.ShapeDtypeStruct(shape, np.int32)


def weight_records(steps: train_step.Steps) -> list[artifact.Weight]:
  """The weights with the shardings that they are stored in.

  A dimension that its axes do not divide, 7 heads on 4 devices, say, is stored
  whole, since the runtime has no uneven arrays. In the step its annotation holds
  all the same, and each device computes its share.

  Args:
    steps: of a task.

  Returns:
    A record for each weight, in order of their paths.

  Raises:
    LoweringError: the mesh does not divide the experts, of which no device can
      hold all.
  """
  mesh, records = steps.partitioning.mesh, []
  for spec in steps.specs:
    axes = list(map(xla_sharding.as_axes, spec.axes(steps.partitioning)))
    first = 1 if spec.layers else 0
    for dim, letter in enumerate(spec.letters, first):
      size, along = spec.shape[dim], axes[dim]
      parts = mesh.partitions(along)
      if size % parts and letter == 'e':
        raise LoweringError(
            f'{size} experts of {spec.path} do not split over {parts} devices '
            f'(mesh axes {", ".join(along)}); choose a mesh whose axes divide {size}')
      if size % parts:
        axes[dim] = ()
    records.append(artifact.Weight(
        spec.path, spec.shape, np.dtype(steps.params.dtype.as_numpy_dtype).name, tuple(axes),
        spec.letters, spec.layers, spec.trainable))
  return records


def check_rows(mesh: xla_sharding.Mesh, axes, rows: int, what: str):
  """Raises LoweringError where the mesh does not divide the rows."""
  parts = mesh.partitions(axes)
  if rows % parts:
    raise LoweringError(
        f'{rows} {what} do not split over {parts} devices (mesh axes '
        f'{", ".join(axes)}); choose a mesh whose axis divides {rows}, or set the '
        f'rows to a multiple of {parts}')


def optimizer_settings(train) -> dict:
  """The settings of `runtime.optimizer` for a task's `train` Params.

  Args:
    train: the Params; Lingvo's XLAShardingAdafactor without first moment, with
      LinearRampupSqrtDecay.

  Returns:
    A dict.

  Raises:
    LoweringError: another optimiser or schedule.
  """
  opt, sched = train.optimizer, train.lr_schedule
  if opt.cls is not lingvo_optimizer.XLAShardingAdafactor or opt.beta1 or opt.decay_exponent_pow:
    raise LoweringError(f'optimizer {opt.cls.__name__}: the runtime has '
                        'XLAShardingAdafactor with beta1 0 and no decay_exponent_pow')
  if sched.cls is not lingvo_schedule.LinearRampupSqrtDecay:
    raise LoweringError(f'lr_schedule {sched.cls.__name__}: the runtime has LinearRampupSqrtDecay')
  return dict(
      learning_rate=train.learning_rate * sched.peak,
      warmup_steps=sched.warmup_steps, beta2=opt.beta2,
      clipping_threshold=opt.clipping_threshold,
      min_dim_size_to_factor=opt.min_dim_size_to_factor)
