"""The report of a compilation as tables on a terminal, and as a page."""

import pathlib
import sys

import jinja2
from rich import box
from rich.console import Console
from rich.table import Table

_TEMPLATE = pathlib.Path(__file__).with_name('aot_report.html.jinja')
_PIPED_WIDTH = 160  # characters, where there is no terminal to ask
_NONE = '-'
_PARTS = {
    'attention': 'attention', 'dense_feed_forward': 'dense feed-forward', 'experts': 'experts',
    'gating': 'gating', 'dispatch_and_combine': 'dispatch and combine',
    'all_to_all': 'all-to-all', 'embedding': 'embedding', 'softmax': 'softmax',
    'elementwise': 'norms, dropout, residuals', 'optimizer': 'optimiser',
    'all_reduce': 'sum of gradients'}


def gib(n: int | None) -> str:
  """Bytes in GiB; less than a tenth in MiB."""
  if n is None:
    return _NONE
  return f'{n / 2**30:,.2f} GiB' if abs(n) >= 2**30 / 10 else f'{n / 2**20:,.2f} MiB'


def seconds(s: float | None) -> str:
  """Seconds with three digits, below a tenth in milliseconds or less."""
  if s is None:
    return _NONE
  for unit, scale in (('s', 1), ('ms', 1e3), ('µs', 1e6)):
    if s * scale >= .1 or unit == 'µs':
      return f'{s * scale:,.3g} {unit}' if s * scale < 1000 else f'{s * scale:,.0f} {unit}'


def number(n: float | None) -> str:
  """A large number with a unit of thousands."""
  if n is None:
    return _NONE
  for unit, scale in (('T', 1e12), ('G', 1e9), ('M', 1e6)):
    if n >= scale:
      return f'{n / scale:,.3g} {unit}' if n < 1000 * scale else f'{n / scale:,.0f} {unit}'
  return f'{n:,.0f}' if n >= 10 else f'{n:,.3g}'


def parts(report: dict) -> list[tuple[str, float]]:
  """The parts of the roofline that take time, longest first: name and seconds."""
  found = [(_PARTS[key], s) for key, s in report['roofline'].items() if key in _PARTS and s]
  return sorted(found, key=lambda pair: -pair[1])


def lines(report: dict) -> list[tuple[str, str]]:
  """What a report says, line by line: a name and a text."""
  memory, paper = report['memory'], report['paper'] or {}
  cores = f'{report["partitions"]:,} ({"x".join(map(str, report["mesh"].values()))})'
  found = [
      ('cores (mesh)', cores),
      ('parameters', f'{report["parameters"]:,}'),
      ('target positions a step', f'{report["tokens_per_step"]:,}'),
      ('arguments, a core', gib(memory['arguments'])),
      ('temporaries, a core', gib(memory['temporaries'])),
      ('total, a core', gib(memory['total'])),
      ('memory that a core has', gib(report['hbm_limit'])),
      ('headroom', gib(report['headroom'])),
      ('operations a core', number(report['flops_per_core'])),
      ('operations a token', number(report['flops_per_token'])),
      ("step, XLA's estimate", seconds(report['estimated_step_seconds'])),
      ("step, XLA's cycles and the links", seconds(report['schedule_seconds'])),
      ('step, roofline estimate', seconds(report['roofline']['total'])),
      ('tokens a second, estimated', number(report['tokens_per_second'])),
      ('core-years for 1T tokens, estimated', number(report['core_years_per_trillion_tokens'])),
      ('lowered, compiled here in', f'{report["lower_seconds"]:,.0f} s, '
                                    f'{report["compile_seconds"]:,.0f} s'),
      ('memory of this machine, at most', gib(report['host_bytes']))]
  if paper:
    found += [
        ('step, measured by the paper', seconds(paper['step_seconds'])),
        ('tokens a second, by the paper', number(paper['tokens_per_second'])),
        ('core-years for 1T tokens, by the paper',
         number(paper['core_years_per_trillion_tokens']))]
  if report['uncounted_loops']:
    found.append(('loops of unknown length, counted once', f'{report["uncounted_loops"]}'))
  return found


def comparison(report: dict) -> list[tuple[str, list[str]]]:
  """What differs between variants: for each line its name, and a text for each variant.

  Args:
    report: with its `variants`.

  Returns:
    Lines; those after the first tell the difference to the model itself too.
  """
  reports = [report, *report['variants']]
  def row(name, get, text):
    first = get(report)
    texts = [text(first)]
    for r in reports[1:]:
      value = get(r)
      more = f' ({value / first - 1:+.0%})' if value is not None and first else ''
      texts.append(text(value) + more)
    return name, texts
  return [
      ('fits', ['yes' if r['fits'] else 'no' for r in reports]),
      row('parameters', lambda r: r['parameters'], number),
      row('arguments, a core', lambda r: r['memory']['arguments'], gib),
      row('temporaries, a core', lambda r: r['memory']['temporaries'], gib),
      row('total, a core', lambda r: r['memory']['total'], gib),
      row('operations a core', lambda r: r['flops_per_core'], number),
      row("step, XLA's estimate", lambda r: r['estimated_step_seconds'], seconds),
      row("step, XLA's cycles and the links", lambda r: r['schedule_seconds'], seconds),
      row('step, roofline estimate', lambda r: r['roofline']['total'], seconds),
      row('compiled in', lambda r: r['compile_seconds'], seconds)]


def variant_names(report: dict) -> list[str]:
  """The columns of `comparison`."""
  return ['itself'] + [' '.join(v['settings'][len(report['settings']):])
                       for v in report['variants']]


def page(report: dict) -> str:
  """A page that needs nothing but itself.

  Args:
    report: see `tools.aot_report`.

  Returns:
    HTML.
  """
  environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True,
                                   undefined=jinja2.StrictUndefined)
  environment.filters |= dict(gib=gib, seconds=seconds, number=number)
  return environment.from_string(_TEMPLATE.read_text(encoding='utf-8')).render(
      r=report, lines=lines(report), parts=parts(report),
      variants=variant_names(report) if 'variants' in report else [],
      comparison=comparison(report) if 'variants' in report else [])


def show(report: dict):
  """Prints tables; of a model that does not fit also what to change."""
  console = _console()
  settings = ' '.join(report['settings'])
  table = _table(f'{report["model"]} {settings}'.strip() + f' on {report["topology"]}', '', '>')
  for name, text in lines(report):
    table.add_row(name, text)
  console.print(table)
  table = _table('Roofline: what each part takes at least, estimated', 'part', '>time', '>share')
  for name, s in parts(report):
    table.add_row(name, seconds(s), f'{s / report["roofline"]["total"]:.1%}')
  console.print(table)
  if report['collectives']:
    table = _table('Collectives of a step', 'kind', '>count', '>bytes a core')
    for kind, c in report['collectives'].items():
      table.add_row(kind, f'{c["count"]:,}', gib(c['bytes']))
    console.print(table)
  table = _table('Largest buffers of a core', '>bytes', 'kind', 'shape', 'layer', 'what',
                 *[] if report['fits'] else ['what to change'])
  for b in report['buffers']:
    table.add_row(gib(b['bytes']), b['kind'], b['shape'], b['layer'], b['what'],
                  *[] if report['fits'] else [b['remedy']])
  console.print(table)
  if 'variants' in report:
    table = _table('Variants', '', *(f'>{name}' for name in variant_names(report)))
    for name, texts in comparison(report):
      table.add_row(name, *texts)
    console.print(table)
  if 'search' in report:
    console.print(f'The largest that fits: {report["parameters"]:,} parameters, '
                  f'{" ".join(report["constants"]) or "the model itself"}', highlight=False)
  if not report['fits']:
    console.print(f'does not fit: {gib(report["memory"]["total"])} of the '
                  f'{gib(report["hbm_limit"])} that a core has', style='red', highlight=False)


def show_topologies(rows: list[dict]):
  """Prints the table of --topology=list."""
  table = _table('Slices by name; the figures are public peaks of one core, memory what a '
                 'program may take', 'topology', '>cores', '>memory', '>bf16 operations',
                 '>memory bandwidth', '>link, each way')
  for row in rows:
    table.add_row(row['topology'], f'{row["cores"]:,}', gib(row['hbm_limit']),
                  f'{row["flops_per_second"] / 1e12:,.1f} T/s',
                  f'{row["hbm_bytes_per_second"] / 1e9:,.0f} GB/s',
                  f'{row["link_bytes_per_second"] / 1e9:,.0f} GB/s')
  _console().print(table)


def _console():
  return Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH)


def _table(title, *columns):
  """A table; a column whose name begins with > is of numbers."""
  table = Table(box=box.SIMPLE_HEAD, title=title, title_justify='left', title_style='bold',
                show_header=any(c.strip('>') for c in columns))
  for name in columns:
    table.add_column(name.lstrip('>'), justify='right' if name.startswith('>') else 'left',
                     overflow='fold')
  return table
