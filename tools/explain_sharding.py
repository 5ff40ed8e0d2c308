"""Explains what the partitioner made of a registered model.

  python -m tools.explain_sharding --model=model_registry.catalog.Demo --mesh=8
  python -m tools.explain_sharding --model=model_registry.smoke.Tiny --mesh=8 --mesh=4x2 --html=tiny.html
  python -m tools.explain_sharding --model=model_registry.smoke.Tiny --mesh=8 --function=evaluate --json

Compiles the model for virtual CPU devices and shows every weight and annotated
activation with what one device holds of it, and every collective with the layer
and the TensorFlow operation that caused it. The reshards that nobody asked for
come first, each with the annotation that would remove it. Sizes are bytes on one
device; a collective's are those of its result.
"""

import argparse
import json
import math
import os
import sys
import time

from absl import flags

# XLA's warnings of full rematerialisation are to be read, not shown; see `quiet`.
os.environ['TF_CPP_MIN_LOG_LEVEL'] = '1'

from gshard_tf import quiet  # pylint: disable=g-import-not-at-top,wrong-import-position

with quiet.libraries():
  # pylint: disable=g-import-not-at-top
  import jax
  from lingvo import model_registry as lingvo_registry
  import tensorflow as tf

  from gshard_tf import lowering
  from gshard_tf import output_files
  from gshard_tf import trainer
  from gshard_tf import xla_sharding
  from gshard_tf.input import generator
  from gshard_tf.runtime import explanation
  from gshard_tf.runtime import mesh as mesh_lib
  from tools import explanation_views

  tf.config.list_physical_devices()  # complains the first time, where there is no GPU

_USER_ERRORS = (trainer.UnknownModelError, lowering.LoweringError, mesh_lib.MeshError,
                xla_sharding.ShardingError, OSError)


def explain(name: str, meshes: list[str], function: str) -> list[dict]:
  """Compiles a model for several meshes and explains each.

  Args:
    name: of a registered model.
    meshes: sizes of the mesh axes, such as `8` or `4x2`.
    function: one of the model's.

  Returns:
    For each mesh what the command prints as JSON.
  """
  trainer.import_model(name)
  with quiet.libraries():
    params = lingvo_registry.GetParams(name, 'Train')
  axes = params.task.mesh_axes
  sizes = [mesh_lib.parse(mesh, len(axes)) for mesh in meshes]
  if None in sizes:
    raise mesh_lib.MeshError('--mesh=auto: the devices are virtual; give sizes such as 8 or 4x2')
  jax.config.update('jax_platforms', 'cpu')
  mesh_lib.set_platform(max(sizes, key=math.prod))
  return [_explain(name, params, text, size, function) for text, size in zip(meshes, sizes)]


def _explain(name, params, text, sizes, function):
  mesh = mesh_lib.make(sizes, params.task.mesh_axes)
  start = time.monotonic()
  with quiet.libraries():
    artifact = lowering.lower_task(
        name, params.task, xla_sharding.Mesh(sizes, params.task.mesh_axes),
        generator.batch_shapes(params.input), {}, {}, functions=(function,))
  lowered = time.monotonic()
  found = explanation.explain(artifact, mesh, function)
  return dict(model=name, function=function, mesh_text=text,
              lower_seconds=lowered - start, compile_seconds=time.monotonic() - lowered,
              **found.as_dict())


def main():
  """Runs the command; returns its exit status."""
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--model', required=True, help='a registered name')
  parser.add_argument('--mesh', action='append', required=True,
                      help='sizes of the mesh axes, such as 8 or 4x2; several are compared')
  parser.add_argument('--function', choices=lowering.FUNCTIONS, default='train',
                      help='of the model; train has the optimiser with it (%(default)s)')
  parser.add_argument('--html', metavar='FILE', help='write a page')
  output_files.add_json(parser)
  args = parser.parse_args()
  flags.FLAGS([sys.argv[0]])  # Lingvo's flags have their defaults
  try:
    outputs = output_files.OutputFiles(args.html, args.json)
    results = explain(args.model, args.mesh, args.function)
    explanation_views.show(results)
    outputs.write(args.html, explanation_views.page(results))
    outputs.write(args.json, json.dumps(
        results[0] | ({'meshes': results} if len(results) > 1 else {})))
  except _USER_ERRORS as error:
    print(f'explain_sharding: {error}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main())
