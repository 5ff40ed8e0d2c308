"""What lies in a core's memory at the moment of its greatest use, read from XLA's dumps.

The compiler writes where it lays every value and from when to when it is needed,
whether or not the program fits. From both follow the moment and the values.
"""

import glob
import os
import re
from typing import NamedTuple

from gshard_tf.runtime import hlo

# What to ask of the compiler; without it nothing is written.
OPTIONS = {'xla_dump_hlo_as_text': True}

_ALLOCATION = re.compile(r'^allocation \d+: size (\d+),(.*)$')
_VALUE = re.compile(r'^ value: <\d+ (\S+) @\d+> \(size=(\d+),offset=(\d+)\): (.*)$')
_LIFE = re.compile(r'^    (\S+?\{[\d,]*\}):(\d+)-(\d+)$')
_COLOR = re.compile(r'\bcolor (\d+)')


class Buffer(NamedTuple):
  """One piece of memory.

  Attributes:
    bytes: its size, padding included.
    kind: argument, output or temporary; of an argument that the program
      overwrites by a result, argument.
    shape: of the array in it.
    instruction: the name of what makes it.
    op_name: what the framework called that.
  """
  bytes: int
  kind: str
  shape: str
  instruction: str
  op_name: str


class Memory(NamedTuple):
  """The memory of a program on one core, in bytes.

  Attributes:
    arguments: what it is given.
    temporaries: the most that it needs besides, at a time.
    total: with results that do not take the place of an argument.
    buffers: at the moment of greatest use, largest first.
  """
  arguments: int
  temporaries: int
  total: int
  buffers: list[Buffer]


class _Allocation(NamedTuple):
  size: int
  kind: str
  values: list[tuple[str, int, int, str]]  # name, size, offset, shape


def read(folder: str) -> Memory:
  """Reads the dumps of one compilation.

  Args:
    folder: where XLA was told to write them.

  Returns:
    The memory of the largest program in it; XLA compiles small helpers too.
  """
  ending = '.after_optimizations-buffer-assignment.txt'
  path = max(glob.glob(os.path.join(glob.escape(folder), f'*{ending}')), key=os.path.getsize)
  stem = path.removesuffix(ending)
  allocations = _allocations(path)
  lives = {m[1]: (int(m[2]), int(m[3])) for line in _lines(
      f'{stem}.after_optimizations-live-range.txt') if (m := _LIFE.match(line))}
  with open(f'{stem}.after_optimizations.txt', encoding='utf-8') as f:
    op_names = {i.name: i.op_name for instructions in hlo.parse(f.read()).computations.values()
                for i in instructions.values()}
  of_kind = lambda *kinds: [a for a in allocations if a.kind in kinds]
  size = lambda *kinds: sum(a.size for a in of_kind(*kinds))
  found = [_largest(a.values, a) for a in of_kind('argument', 'output')]
  for a in of_kind('temporary'):
    found += _at_peak(a, lives)
  buffers = [b._replace(op_name=op_names.get(b.instruction, '')) for b in found]
  return Memory(
      arguments=size('argument'), temporaries=size('temporary'),
      total=size('argument', 'output', 'temporary'),
      buffers=sorted(buffers, key=lambda b: -b.bytes))


def _lines(path):
  with open(path, encoding='utf-8') as f:
    yield from (line.rstrip('\n') for line in f)


def _allocations(path):
  """The allocations of the main memory that hold more than a constant."""
  found = []
  for line in _lines(path):
    if head := _ALLOCATION.match(line):
      color = _COLOR.search(head[2])
      kind = ('argument' if ' parameter ' in head[2] else
              'temporary' if 'preallocated-temp' in head[2] else
              'output' if 'maybe-live-out' in head[2] else 'constant')
      main = not color or color[1] == '0'
      found.append(_Allocation(int(head[1]), kind if main else 'elsewhere', []))
    elif value := _VALUE.match(line):
      found[-1].values.append((value[1], int(value[2]), int(value[3]), value[4]))
  return found


def _at_peak(allocation, lives):
  """The values that share one piece of memory when most of it is used."""
  events = []
  for value in allocation.values:
    start, end = lives.get(_key(value[0]), (0, 0))
    events += [(start, 0, value), (end + 1, -1, value)]
  live, used, most, peak = {}, 0, -1, {}
  for _, kind, value in sorted(events):
    here = live.setdefault(value[2], [])
    before = max((v[1] for v in here), default=0)
    here.append(value) if kind == 0 else here.remove(value)
    used += max((v[1] for v in here), default=0) - before
    if used > most:
      most, peak = used, {offset: list(values) for offset, values in live.items() if values}
  return [_largest(values, allocation) for values in peak.values()]


def _key(name):
  return name if name.endswith('}') else f'{name}{{}}'


def _largest(values, allocation):
  """A buffer of the largest of the values that lie in one place; the first of equals."""
  name, size, _, shape = max(values, key=lambda v: v[1])
  return Buffer(size, allocation.kind, re.sub(r'\{[^}]*\}', '', shape), name.partition('{')[0], '')
