"""HLO text, XLA's own form of a program, as computations of instructions.

Only what the reports ask for is read: names, shapes, operands, and attributes
as text. Everything here is a pure function of the text.
"""

import dataclasses
import functools
import math
import re

_HEADER = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{$')
_INSTRUCTION = re.compile(r'^\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\(')
_SHAPE = re.compile(r'\b(pred|token|[a-z]+\d+\w*)\[([\d,<=]*)\]')
_NAME = re.compile(r'%([\w.\-]+)')
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CLOSING = {'(': ')', '{': '}', '[': ']'}


@dataclasses.dataclass(frozen=True)
class Shape:
  """Of one array: its type in XLA's spelling, such as `bf16`, and its dimensions."""
  dtype: str
  dims: tuple[int, ...]

  @property
  def bytes(self) -> int:
    """What the elements take; nothing for a token."""
    if self.dtype == 'token':
      return 0
    bits = 8 if self.dtype == 'pred' else int(re.search(r'\d+', self.dtype)[0])
    return math.prod(self.dims) * bits // 8

  def __str__(self):
    return f'{self.dtype}[{",".join(map(str, self.dims))}]'


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation.

  Attributes:
    name: of its own, within the module.
    opcode: such as `all-gather`.
    shapes: of the result; of a tuple, of each array in it.
    operands: names of instructions of the same computation.
    rest: everything after the operands, as text.
    is_root: whether it is the result of its computation.
  """
  name: str
  opcode: str
  shapes: tuple[Shape, ...]
  operands: tuple[str, ...]
  rest: str
  is_root: bool

  @property
  def shape(self) -> Shape:
    """The shape of the only or first array of the result."""
    return self.shapes[0]

  @property
  def bytes(self) -> int:
    """The bytes of the result."""
    return sum(s.bytes for s in self.shapes)

  @functools.cached_property
  def op_name(self) -> str:
    """What the framework called the operation; empty if nothing."""
    found = _OP_NAME.search(self.rest)
    return re.sub(r'\\(.)', r'\1', found[1]) if found else ''

  def attribute(self, key: str) -> str:
    """The text of an attribute, with its brackets; empty if there is none."""
    start = re.search(rf'(?:^|[ ,{{]){key}=', self.rest)
    if not start:
      return ''
    text = self.rest[start.end():]
    if text[:1] in _CLOSING:
      end = _closing(text, 0) + 1
      return text[:end] + re.match(r'(<=\[[\d,]*\](T\([\d,]*\))?)?', text[end:])[0]
    return re.match(r'[^, ]*', text)[0]

  def integers(self, key: str) -> tuple[int, ...]:
    """An attribute that is a list of integers, such as dimensions={0,2}."""
    return tuple(map(int, re.findall(r'\d+', self.attribute(key))))

  @property
  def called(self) -> list[tuple[str, int]]:
    """Computations that it runs, and how often each.

    Not those applied to single elements. A loop whose number of rounds XLA does
    not know counts once.
    """
    if self.opcode == 'while':
      rounds = _TRIP_COUNT.search(self.rest)
      count = int(rounds[1]) if rounds else 1
      return [(_NAME.search(self.attribute(k))[1], count) for k in ('condition', 'body')]
    keys = {'call': ['to_apply'], 'fusion': ['calls'], 'async-start': ['calls'],
            'conditional': ['branch_computations', 'true_computation', 'false_computation']}
    return [(name, 1) for key in keys.get(self.opcode, ())
            for name in _NAME.findall(self.attribute(key))]


@dataclasses.dataclass(frozen=True)
class Module:
  """A program.

  Attributes:
    computations: for each computation its instructions, in order, by name.
    entry: the name of the computation that is the program.
    partitions: for how many devices it is.
  """
  computations: dict[str, dict[str, Instruction]]
  entry: str
  partitions: int

  def runs(self) -> dict[str, int]:
    """How often each computation is run in one run of the program."""
    count = dict.fromkeys(self.computations, 0)
    def visit(name, times):
      count[name] += times
      for instruction in self.computations[name].values():
        for called, rounds in instruction.called:
          visit(called, times * rounds)
    visit(self.entry, 1)
    return count


def parse(text: str) -> Module:
  """Reads the text of a module.

  Args:
    text: as `Compiled.as_text()` gives it, or XLA's dumps. Instructions outside
      of any computation make a program of their own.

  Returns:
    The module.
  """
  computations, entry, current = {}, None, {}
  for line in text.splitlines():
    if found := _INSTRUCTION.match(line):
      instruction = _instruction(line, found)
      current[instruction.name] = instruction
    elif found := _HEADER.match(line):
      current = computations[found[2]] = {}
      entry = found[2] if found[1] else entry
  partitions = re.search(r'^HloModule .*\bnum_partitions=(\d+)', text)
  return Module(computations or {'': current}, entry or next(reversed(computations), ''),
                int(partitions[1]) if partitions else 1)


def _instruction(line, found):
  end = _closing(line, found.end() - 1)
  shapes = tuple(Shape(dtype, tuple(int(n.lstrip('<=')) for n in dims.split(',') if n))
                 for dtype, dims in _SHAPE.findall(found[3]))
  return Instruction(
      name=found[2], opcode=found[4], shapes=shapes, is_root=bool(found[1]),
      operands=tuple(_NAME.findall(line[found.end():end])), rest=line[end + 1:])


def _closing(text, start):
  """The index of the bracket that closes the one at `start`."""
  depth = 0
  for i in range(start, len(text)):
    if text[i] in '({[':
      depth += 1
    elif text[i] in ')}]':
      depth -= 1
      if not depth:
        return i
  return len(text) - 1
