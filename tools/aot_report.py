"""Compiles a registered model's train step for TPUs that are not there.

  python -m tools.aot_report --model=model_registry.m4.MoE2048E36L --topology=v3:32x32 --html=report.html
  python -m tools.aot_report --model=model_registry.smoke.Tiny --topology=v3:2x2 --json
  python -m tools.aot_report --model=model_registry.smoke.Tiny --topology=v3:2x2 --compare=REMAT=block --compare="REMAT=block MICROBATCHES=4"
  python -m tools.aot_report --model=model_registry.m4.MoE2048E36L --topology=v3:32x32 --search=largest
  python -m tools.aot_report --topology=list

Prints what the compiler plans: memory a core, operations, collectives and its
own estimate of the time of a step; and a roofline that does without the compiler.
Needs libtpu (make setup-tpu), no TPU. Exit status 3 says that the model does not
fit; the largest buffers are then listed, with what would make them smaller.
"""

import argparse
import json
import sys

from absl import flags

from gshard_tf import quiet

with quiet.libraries():
  # pylint: disable=g-import-not-at-top
  from lingvo import model_registry as lingvo_registry

  from gshard_tf import lowering
  from gshard_tf import output_files
  from gshard_tf import scaling
  from gshard_tf import trainer
  from gshard_tf import xla_sharding
  from gshard_tf.layers import weights
  from gshard_tf.params import variants
  from gshard_tf.runtime import aot
  from gshard_tf.runtime import mesh as mesh_lib
  from gshard_tf.runtime import topologies
  from tools import aot_search
  from tools import aot_views
  from tools import processes

_USER_ERRORS = (trainer.UnknownModelError, aot.TopologyError, topologies.UnknownTopologyError,
                lowering.LoweringError, mesh_lib.MeshError, xla_sharding.ShardingError,
                weights.ParamsError, variants.VariantError, processes.FailedError,
                OSError)


def report(name: str, topology: str, mesh: str, settings: list[str]) -> dict:
  """Lowers and compiles a model, or a variant of it.

  Args:
    name: of a registered model.
    topology: see `topologies.find`.
    mesh: sizes of the mesh axes, or auto.
    settings: see `variants.variant`.

  Returns:
    What the command prints as JSON.
  """
  return scaling.figures(find(name, settings), name, topology, mesh) | dict(settings=settings)


def find(name: str, settings: list[str]) -> type:
  """The class of a registered model, or of a variant of it."""
  trainer.import_model(name)
  with quiet.libraries():
    model = lingvo_registry.GetClass(name)
  return variants.variant(model, settings)


def _parser():
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--model', help='a registered name')
  parser.add_argument('--topology', required=True,
                      help='such as v3:32x32; list shows what there is')
  parser.add_argument('--mesh', default='auto', help='sizes of the mesh axes (%(default)s)')
  parser.add_argument('--set', action='append', default=[], metavar='NAME=VALUE',
                      help='another value for a constant of the model; may be repeated')
  parser.add_argument('--compare', action='append', default=[], metavar='"NAME=VALUE ..."',
                      help='a variant to show beside the model; may be repeated')
  parser.add_argument('--search', choices=['largest'],
                      help='the largest model of the family that fits')
  parser.add_argument('--vary', action='append', choices=aot_search.WAYS,
                      help='what the search may enlarge; all of them by default')
  parser.add_argument('--html', metavar='FILE', help='write a page')
  output_files.add_json(parser)
  return parser


def run(args) -> dict:
  """What the flags ask for: a report, with its variants, or the result of a search."""
  if not args.model:
    raise trainer.UnknownModelError('--model is missing; --help shows examples')
  # Each in a process of its own: the compiler does not give all memory back.
  compiled = lambda settings: processes.report(args.model, args.topology, args.mesh, settings)
  if args.search:
    return aot_search.largest(find(args.model, args.set), args.topology,
                              args.vary or aot_search.WAYS,
                              lambda more: compiled(args.set + more))
  others = [args.set + text.split() for text in args.compare]
  for settings in others:
    find(args.model, settings)  # faults before the work
  result = report(args.model, args.topology, args.mesh, args.set)
  if others:
    result['variants'] = []
  for settings in others:
    try:
      result['variants'].append(compiled(settings))
    except processes.FailedError as error:
      print(f'aot_report: left out: {error}', file=sys.stderr)
  return result


def main():
  """Runs the command; returns its exit status."""
  args = _parser().parse_args()
  flags.FLAGS([sys.argv[0]])  # Lingvo's flags have their defaults
  try:
    aot.prepare()
    outputs = output_files.OutputFiles(args.html, args.json)
    if args.topology == 'list':
      result = [topologies.row(t) for t in topologies.listing()]
      aot_views.show_topologies(result)
    else:
      result = run(args)
      aot_views.show(result)
      if args.html:
        outputs.write(args.html, aot_views.page(result))
    outputs.write(args.json, json.dumps(result))
  except _USER_ERRORS as error:
    print(f'aot_report: {error}', file=sys.stderr)
    return 2
  return 0 if isinstance(result, list) or result['fits'] else 3


if __name__ == '__main__':
  sys.exit(main())
