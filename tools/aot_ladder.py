"""Compiles the paper's models for the paper's cores, and sets them beside the paper.

  make aot-ladder
  python -m tools.aot_ladder --output=ladder
  python -m tools.aot_ladder --output=ladder --keep --model=model_registry.m4.MoE128E12L

Each model is compiled in a process of its own; one that fails is said and left
out. Writes to the folder the report of each as JSON, ladder.md and ladder.png.
"""

import argparse
import json
import os
import sys

from absl import flags
import matplotlib

from gshard_tf import quiet

with quiet.libraries():
  # pylint: disable=g-import-not-at-top
  from lingvo import model_registry as lingvo_registry

  from gshard_tf import trainer
  from gshard_tf.runtime import aot
  from tools import aot_views
  from tools import processes

matplotlib.use('Agg')
from matplotlib import pyplot as plt  # pylint: disable=g-import-not-at-top,wrong-import-position

_COLUMNS = ('model', 'parameters', 'cores', 'arguments', 'temporaries', 'headroom',
            'operations a token', "step: XLA's estimate", 'with links', 'roofline',
            'paper, measured', 'core-years for 1T tokens', 'paper', 'lowered, compiled here in', 'memory here')


def ladder() -> dict[str, str]:
  """The registered models that the paper measured, with the slice that it used."""
  with quiet.libraries():
    classes = {name: lingvo_registry.GetClass(name) for name in trainer.registered()}
  return {name: c.PAPER_TOPOLOGY for name, c in classes.items() if hasattr(c, 'PAPER_TOPOLOGY')}


def table(reports: list[dict]) -> str:
  """The reports beside the paper, as Markdown.

  Args:
    reports: of `tools.aot_report`.

  Returns:
    A table; all times but those measured are estimates.
  """
  rows = [_COLUMNS, ['---'] + ['---:'] * (len(_COLUMNS) - 1), *map(_row, reports)]
  return ''.join(f'| {" | ".join(row)} |\n' for row in rows)


def _row(r):
  gib, seconds, number = aot_views.gib, aot_views.seconds, aot_views.number
  paper = r['paper'] or dict.fromkeys(('step_seconds', 'core_years_per_trillion_tokens'))
  return (_short(r), number(r['parameters']), f'{r["partitions"]:,}', gib(r['memory']['arguments']),
          gib(r['memory']['temporaries']), gib(r['headroom']), number(r['flops_per_token']),
          seconds(r['estimated_step_seconds']), seconds(r['schedule_seconds']),
          seconds(r['roofline']['total']), seconds(paper['step_seconds']),
          number(r['core_years_per_trillion_tokens']),
          number(paper['core_years_per_trillion_tokens']), f'{r["lower_seconds"]:.0f} s, {r["compile_seconds"]:.0f} s', gib(r['host_bytes']))


def draw(reports: list[dict], output: str):
  """Draws the time of a step of each model, ours and the paper's, to an image file."""
  reports = [r for r in reports if r['estimated_step_seconds']]
  series = (("XLA's estimate", lambda r: r['estimated_step_seconds']),
            ("XLA's cycles and the links", lambda r: r['schedule_seconds']),
            ('roofline estimate', lambda r: r['roofline']['total']),
            ('paper, measured', lambda r: r['paper'] and r['paper']['step_seconds']))
  figure, axes = plt.subplots(figsize=(8, 4), constrained_layout=True)
  width = .8 / len(series)
  for i, (label, get) in enumerate(series):
    axes.bar([n + i * width for n in range(len(reports))], [get(r) or 0. for r in reports], width,
             label=label)
  axes.set_xticks([n + 1.5 * width for n in range(len(reports))],
                  [f'{_short(r)}\n{r["partitions"]:,} cores' for r in reports], fontsize=8)
  axes.set(ylabel='seconds a step')
  axes.grid(alpha=.3, axis='y')
  axes.legend()
  figure.savefig(output, dpi=120)
  plt.close(figure)


def compile_all(names: dict[str, str], folder: str, keep: bool) -> list[dict]:
  """Makes the reports, and says how each went.

  Args:
    names: for each model the slice.
    folder: where the reports go.
    keep: whether to take those that are there already.

  Returns:
    The reports there are, from the fewest parameters to the most.
  """
  reports = []
  for name, topology in names.items():
    path = os.path.join(folder, f'{name.rpartition(".")[2]}.json')
    if not (keep and os.path.exists(path)):
      try:
        made = processes.report(name, topology, 'auto', [])
      except processes.FailedError as error:
        print(f'aot_ladder: {error}', file=sys.stderr, flush=True)
        continue
      with open(path, 'w', encoding='utf-8') as f:
        json.dump(made, f)
    with open(path, encoding='utf-8') as f:
      reports.append(json.load(f))
    r = reports[-1]
    print(f'{name} on {topology}: {"fits" if r["fits"] else "does not fit"}, '
          f'{aot_views.gib(r["memory"]["total"])} a core, a step estimated at '
          f'{aot_views.seconds(r["estimated_step_seconds"])}', flush=True)
  return sorted(reports, key=lambda r: r['parameters'])


def _short(report):
  return report['model'].rpartition('.')[2]


def main():
  """Runs the command; returns its exit status: 1 if a model failed."""
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--output', required=True, help='a folder')
  parser.add_argument('--model', action='append',
                      help='a registered name; may be repeated; all of the ladder by default')
  parser.add_argument('--keep', action='store_true', help='take the reports that are there')
  args = parser.parse_args()
  flags.FLAGS([sys.argv[0]])  # Lingvo's flags have their defaults
  path = lambda name: os.path.join(args.output, name)
  try:
    aot.prepare()
    for name in args.model or ():
      trainer.import_model(name)
    known = ladder()
    other = [name for name in args.model or () if name not in known]
    if other:
      raise trainer.UnknownModelError(f'{other[0]} has no PAPER_TOPOLOGY; the ladder has '
                                      f'{", ".join(known)}')
    names = {name: known[name] for name in args.model or known}
    os.makedirs(args.output, exist_ok=True)
    reports = compile_all(names, args.output, args.keep)
    with open(path('ladder.md'), 'w', encoding='utf-8') as f:
      f.write(table(reports))
    if reports:
      draw(reports, path('ladder.png'))
  except (trainer.UnknownModelError, aot.TopologyError, OSError) as error:
    print(f'aot_ladder: {error}', file=sys.stderr)
    return 2
  return 0 if len(reports) == len(names) else 1


if __name__ == '__main__':
  sys.exit(main())
