"""Benchmarks.

  python -m tools.bench compile --help
"""

import argparse
import importlib
import json
import sys

_COMMANDS = {'compile': 'lowering and compile time at 8 to 2048 partitions'}


def main():
  """Runs the command; returns its exit status."""
  parser = argparse.ArgumentParser(prog='bench', description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  commands = parser.add_subparsers(dest='command', required=True)
  for name, summary in _COMMANDS.items():
    module = importlib.import_module(f'tools.bench.{name}')
    command = commands.add_parser(name, help=summary, description=module.__doc__,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
    module.add_arguments(command)
    command.add_argument('--json', nargs='?', const='-', metavar='FILE',
                         help='print the result as JSON on the last line, or write it to a file')
    command.set_defaults(module=module)
  args = parser.parse_args()
  try:
    result = args.module.run(args)
    args.module.show(result)
    if args.json == '-':
      print(json.dumps(result))
    elif args.json:
      with open(args.json, 'w', encoding='utf-8') as f:
        json.dump(result, f)
  except (ValueError, OSError) as error:
    print(f'bench {args.command}: {error}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main())
