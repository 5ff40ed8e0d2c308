"""Compiles a registered model's train step for TPUs that are not there.

  python -m tools.aot_report --model=model_registry.m4.MoE2048E36L --topology=v3:32x32
  python -m tools.aot_report --model=model_registry.smoke.Tiny --topology=v3:2x2 --json

Prints what the compiler plans: memory a core, operations, collectives, and its
own estimate of the time of a step. Needs libtpu (make setup-tpu), no TPU. Exit
status 3 says that the model does not fit.
"""

import argparse
import json
import sys
import time

from absl import flags

from gshard_tf import quiet

with quiet.libraries():
  # pylint: disable=g-import-not-at-top
  from lingvo import model_registry as lingvo_registry
  from rich import box
  from rich.console import Console
  from rich.table import Table

  from gshard_tf import lowering
  from gshard_tf import trainer
  from gshard_tf import xla_sharding
  from gshard_tf.input import generator
  from gshard_tf.layers import weights
  from gshard_tf.runtime import aot
  from gshard_tf.runtime import mesh as mesh_lib

_USER_ERRORS = (trainer.UnknownModelError, aot.TopologyError, lowering.LoweringError,
                mesh_lib.MeshError, xla_sharding.ShardingError, weights.ParamsError)


def report(name: str, topology: str, mesh: str) -> dict:
  """Lowers and compiles a model.

  Args:
    name: of a registered model.
    topology: see `aot.topology_mesh`.
    mesh: sizes of the mesh axes, or auto.

  Returns:
    What the command prints as JSON.
  """
  trainer.import_model(name)
  with quiet.libraries():
    params = lingvo_registry.GetParams(name, 'Train')
  sizes = mesh_lib.parse(mesh, len(params.task.mesh_axes))
  devices = aot.topology_mesh(topology, sizes, params.task.mesh_axes)
  shapes = generator.batch_shapes(params.input)
  start = time.monotonic()
  artifact = lowering.lower_task(
      name, params.task, xla_sharding.Mesh(devices.devices.shape, devices.axis_names),
      shapes, {}, {}, functions=('train',))
  lower_seconds = time.monotonic() - start
  found = aot.compile_train_step(artifact, devices)
  rows, length = shapes['tgt']['ids']
  return dict(
      model=name, topology=topology, parameters=artifact.num_parameters,
      tokens_per_step=rows * length, lower_seconds=lower_seconds, **dict(
          found._asdict(),
          collectives={kind: c._asdict() for kind, c in found.collectives.items()}))


def print_report(result: dict):
  """Prints the report as a table."""
  gib = lambda n: f'{n / 2**30:,.2f} GiB'
  table = Table(box=box.SIMPLE_HEAD, show_header=False, title=f'{result["model"]} on {result["topology"]}')
  table.add_row('cores', f'{result["partitions"]:,}')
  table.add_row('parameters', f'{result["parameters"]:,}')
  table.add_row('target positions a step', f'{result["tokens_per_step"]:,}')
  for name, size in result['memory'].items():
    table.add_row(f'memory a core, {name}', gib(size))
  if result['hbm_limit']:
    table.add_row('memory that a core has', gib(result['hbm_limit']))
  if result['fits']:
    table.add_row('floating-point operations a core', f'{result["flops_per_core"] / 1e12:,.3f} T')
    table.add_row("time of a step, the compiler's estimate", f'{result["estimated_step_seconds"]:,.3f} s')
  for kind, found in result['collectives'].items():
    table.add_row(kind, f'{found["count"]} of {gib(found["bytes"])} a core together')
  table.add_row('lowered, compiled in', f'{result["lower_seconds"]:.0f} s, {result["compile_seconds"]:.0f} s')
  Console().print(table)
  if not result['fits']:
    print('the model does not fit')


def main():
  """Runs the command; returns its exit status."""
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--model', required=True, help='a registered name')
  parser.add_argument('--topology', required=True, help='such as v3:32x32')
  parser.add_argument('--mesh', default='auto', help='sizes of the mesh axes (%(default)s)')
  parser.add_argument('--json', nargs='?', const='-',
                      help='print the report as JSON on the last line, or write it to a file')
  args = parser.parse_args()
  flags.FLAGS([sys.argv[0]])  # Lingvo's flags have their defaults
  try:
    aot.prepare()
    result = report(args.model, args.topology, args.mesh)
  except _USER_ERRORS as error:
    print(f'aot_report: {error}', file=sys.stderr)
    return 2
  print_report(result)
  if args.json == '-':
    print(json.dumps(result))
  elif args.json:
    with open(args.json, 'w', encoding='utf-8') as f:
      json.dump(result, f)
  return 0 if result['fits'] else 3


if __name__ == '__main__':
  sys.exit(main())
