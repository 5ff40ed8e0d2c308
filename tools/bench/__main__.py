"""Benchmarks.

  python -m tools.bench moe
  python -m tools.bench moe --experts=8,32 --json=moe.json
  python -m tools.bench compile --partitions=8,2048 --plot=compile.png

`python -m tools.bench NAME --help` tells what a benchmark measures. A benchmark is
a module with a docstring, `add_arguments(parser)`, `run(args)`, which returns a
dict for JSON and raises `timing.BenchError` for a user's mistake, and
`show(result)`, which prints it.
"""

import argparse
import json
import sys

from gshard_tf import output_files
from tools.bench import compile as compile_lib
from tools.bench import moe
from tools.bench import timing

BENCHMARKS = {'compile': compile_lib, 'moe': moe}


def _parser():
  raw = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(prog='python -m tools.bench', description=__doc__, formatter_class=raw)
  names = parser.add_subparsers(dest='benchmark', required=True)
  for name, module in BENCHMARKS.items():
    below = names.add_parser(name, help=module.__doc__.splitlines()[0], description=module.__doc__,
                             formatter_class=raw)
    module.add_arguments(below)
    output_files.add_json(below)
  return parser


def main() -> int:
  """Runs the command; returns its exit status."""
  args = _parser().parse_args()
  module = BENCHMARKS[args.benchmark]
  try:
    outputs = output_files.OutputFiles(args.json)
    result = module.run(args)
  except (timing.BenchError, OSError) as error:
    print(f'bench {args.benchmark}: {error}', file=sys.stderr)
    return 2
  module.show(result)
  outputs.write(args.json, json.dumps(result))
  return 0


if __name__ == '__main__':
  sys.exit(main())
