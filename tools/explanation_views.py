"""The explanation of a sharding as tables on a terminal, and as a page."""

import itertools
import pathlib
import re
import sys

import jinja2
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

_TEMPLATE = pathlib.Path(__file__).with_name('explanation.html.jinja')
_PIPED_WIDTH = 160  # characters, where there is no terminal to ask


def size(n: int) -> str:
  """Bytes with a unit and three digits at least."""
  for unit in ('B', 'KiB', 'MiB', 'GiB'):
    if n < 1024 or unit == 'GiB':
      return f'{n:,.0f} {unit}' if unit == 'B' or n >= 100 else f'{n:,.1f} {unit}'
    n /= 1024


def layout(entry) -> str:
  """A sharding as the table of an experiment has it."""
  if entry is None:
    return 'not along the mesh'
  parts = [str(e) if e is None or isinstance(e, str) else f'({", ".join(e)})' for e in entry]
  return f'({", ".join(parts)})'


def shape(dtype: str, dims) -> str:
  """Such as `f32[8, 16]`."""
  return f'{dtype}[{", ".join(map(str, dims))}]'


def merged(rows: list[dict]) -> list[dict]:
  """Rows with the same cause as one, their bytes and runs added up, `count` of them.

  Args:
    rows: collectives of an explanation.

  Returns:
    Those that differ, in the order of the first of each; operations of several are
    named without their numbers.
  """
  found = {}
  for row in rows:
    op = re.sub(r'_\d+(?=/|$)', '', row['op'])
    key = (op, *(str(row[k]) for k in (
        'kind', 'layer', 'backward', 'shape', 'dtype', 'from', 'to', 'cause', 'entry', 'mapping')))
    if key in found:
      one = found[key]
      found[key] = one | dict(op=op, count=one['count'] + row['times'],
                              bytes=one['bytes'] + row['bytes'])
    else:
      found[key] = row | dict(count=row['times'])
  return list(found.values())


def remedies(rows: list[dict]) -> list[dict]:
  """Groups what nobody asked for by what would remove it, most bytes first.

  Args:
    rows: collectives of an explanation, each with its `annotation`.

  Returns:
    For each remedy its annotation, as the first of its collectives words it, the
    collectives, merged, and their bytes.
  """
  found = {}
  for row in rows:
    key = (row['entry'], str(row['mapping'])) if row['entry'] else row['annotation']
    found.setdefault(key, []).append(row)
  groups = [dict(annotation=group[0]['annotation'], rows=merged(group),
                 bytes=sum(row['bytes'] for row in group)) for group in found.values()]
  return sorted(groups, key=lambda group: -group['bytes'])


def comparison(results: list[dict]) -> list[tuple[str, list[str]]]:
  """What differs between meshes: for each line its name, and a text for each mesh."""
  kinds = sorted({kind for r in results for kind in r['kinds']})
  def kind_text(result, kind):
    total = result['kinds'].get(kind)
    return f'{total["count"]} of {size(total["bytes"])}' if total else '-'
  return [
      ('devices', [f'{r["partitions"]}' for r in results]),
      ('weights', [size(sum(w['bytes'] for w in r['weights'])) for r in results]),
      ('annotated activations',
       [size(sum(a['bytes'] * a['count'] for a in r['activations'])) for r in results]),
      *((kind, [kind_text(r, kind) for r in results]) for kind in kinds),
      ('not asked for', [f'{len(r["unrequested"])} of '
                         f'{size(sum(u["bytes"] for u in r["unrequested"]))}' for r in results])]


def page(results: list[dict]) -> str:
  """A page that needs nothing but itself.

  Args:
    results: for each mesh its explanation.

  Returns:
    HTML.
  """
  environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True,
                                   undefined=jinja2.StrictUndefined)
  environment.filters |= dict(size=size, layout=layout, merged=merged, remedies=remedies)
  environment.globals |= dict(shape=shape)
  return environment.from_string(_TEMPLATE.read_text(encoding='utf-8')).render(
      results=results, comparison=comparison(results))


def show(results: list[dict]):
  """Prints tables.

  Args:
    results: for each mesh its explanation.
  """
  console = Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH)
  for result in results:
    _show(console, result)
  if len(results) > 1:
    table = _table('Meshes beside each other', [''] + [f'>{r["mesh_text"]}' for r in results])
    for name, texts in comparison(results):
      table.add_row(name, *texts)
    console.print(table)


def _show(console, result):
  """Prints the tables of one mesh."""
  axes = ', '.join(f'{name} {n}' for name, n in result['mesh'].items())
  console.print(f'\n[bold]{escape(result["model"])}, {result["function"]} on {result["mesh_text"]}'
                f'[/bold] ({result["partitions"]} devices: {axes}); bytes are of one device')
  groups = remedies(result['unrequested'])
  if groups:
    table = _table('Reshards that nobody asked for',
                   ['kind', '>bytes', 'layer', 'operation', 'tensor', 'what would remove it'])
    for group in groups:
      for row, remedy in zip(group['rows'], itertools.chain([group['annotation']],
                                                            itertools.repeat('the same'))):
        table.add_row(row['kind'], size(row['bytes']), row['layer'], _operation(row),
                      _change(row), remedy, style='red')
    console.print(table)
  else:
    console.print('[green]No reshard that nobody asked for.[/green]')
  table = _table('Layers', ['layer', '>between devices', '>not asked for', '>weights',
                            '>activations'])
  for layer in result['layers']:
    table.add_row(layer['layer'], *(size(layer[k]) for k in (
        'collectives', 'unrequested', 'weights', 'activations')))
  console.print(table)
  table = _table('Collectives', ['kind', '>bytes', '>devices', 'layer', 'operation', 'tensor',
                                 'because of'])
  for row in merged(result['collectives']):
    table.add_row(row['kind'], size(row['bytes']), str(row['group_size']), row['layer'],
                  _operation(row), shape(row['dtype'], row['shape']),
                  row['cause'] or 'nobody asked', style=None if row['requested'] else 'red')
  console.print(table)
  for title, tensors in (('Weights', result['weights']),
                         ('Annotated activations', result['activations'])):
    table = _table(title, ['layer', 'name', 'shape', 'sharding', 'on a device', '>bytes'])
    for t in tensors:
      times = f'{t["count"]} x ' if t['count'] > 1 else ''
      table.add_row(t['layer'], t['name'], shape(t['dtype'], t['shape']), layout(t['sharding']),
                    shape(t['dtype'], t['device_shape']), times + size(t['bytes']))
    console.print(table)


def _operation(row):
  times = f' x {row["count"]}' if row['count'] > 1 else ''
  return row['op'] + (', backward' if row['backward'] else '') + times


def _change(row):
  if row['from'] is None or row['to'] is None:
    return shape(row['dtype'], row['shape'])
  return f'{shape(row["dtype"], row["shape"])} {layout(row["from"])} -> {layout(row["to"])}'


def _table(title, columns):
  """A table; a column whose name begins with > is of numbers."""
  table = Table(box=box.SIMPLE_HEAD, title=title, title_justify='left', title_style='bold')
  for name in columns:
    table.add_column(name.lstrip('>'), justify='right' if name.startswith('>') else 'left',
                     overflow='fold', no_wrap=name == '>bytes')
  return table
