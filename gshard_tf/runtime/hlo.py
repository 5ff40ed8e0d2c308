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
_SHAPE = re.compile(r'\b(pred|token|[a-z]+\d+\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?')
_NAME = re.compile(r'%([\w.\-]+)')
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CLOSING = {'(': ')', '{': '}', '[': ']'}


@dataclasses.dataclass(frozen=True)
class Shape:
  """Of one array: its type in XLA's spelling, such as `bf16`, and its dimensions.

  Attributes:
    dtype: the type.
    dims: the dimensions.
    layout: as in the text, such as `1,0:T(8,128)`: dimensions from the minor one
      on, and the tiles that a TPU lays them out in. Not compared.
  """
  dtype: str
  dims: tuple[int, ...]
  layout: str = dataclasses.field(default='', compare=False)

  @property
  def bytes(self) -> int:
    """What the elements take; nothing for a token."""
    if self.dtype == 'token':
      return 0
    return math.prod(self.dims) * self._bits // 8

  @property
  def padded_bytes(self) -> int:
    """What it takes in memory: each dimension a multiple of that of the tile."""
    order, _, tiling = self.layout.partition(':')
    tile = re.match(r'T\(([\d,]+)\)', tiling)
    if not tile or self.dtype == 'token':
      return self.bytes
    minor = [self.dims[int(d)] for d in order.split(',') if d]
    sizes = [int(n) for n in tile[1].split(',')][::-1]
    minor += [1] * (len(sizes) - len(minor))
    padded = [-(-n // t) * t for n, t in zip(minor, sizes)] + minor[len(sizes):]
    return math.prod(padded) * self._bits // 8

  @property
  def _bits(self):
    return 8 if self.dtype == 'pred' else int(re.search(r'\d+', self.dtype)[0])

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
    literal: of a constant or a parameter what stands in its brackets.
  """
  name: str
  opcode: str
  shapes: tuple[Shape, ...]
  operands: tuple[str, ...]
  rest: str
  is_root: bool
  literal: str = ''

  @property
  def shape(self) -> Shape:
    """The shape of the only or first array of the result."""
    return self.shapes[0]

  @property
  def bytes(self) -> int:
    """The bytes of the result."""
    return sum(s.bytes for s in self.shapes)

  @property
  def padded_bytes(self) -> int:
    """The bytes of the result as it lies in memory."""
    return sum(s.padded_bytes for s in self.shapes)

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
    not write down counts once; see `Module.runs`.
    """
    if self.opcode == 'while':
      return [(self.loop_part(k), self.rounds or 1) for k in ('condition', 'body')]
    keys = {'call': ['to_apply'], 'fusion': ['calls'], 'async-start': ['calls'],
            'conditional': ['branch_computations', 'true_computation', 'false_computation']}
    return [(name, 1) for key in keys.get(self.opcode, ())
            for name in _NAME.findall(self.attribute(key))]

  @property
  def rounds(self) -> int | None:
    """Of a loop, as often as XLA writes that it runs; None if it does not."""
    known = _TRIP_COUNT.search(self.rest)
    return int(known[1]) if known else None

  def loop_part(self, key: str) -> str:
    """The name of a loop's computation: of its `condition` or its `body`."""
    return _NAME.search(self.attribute(key))[1]


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
    """How often each computation is run in one run of the program.

    A loop of which neither XLA nor `rounds_of` knows the rounds counts once.
    """
    count = dict.fromkeys(self.computations, 0)
    def visit(name, times):
      count[name] += times
      for instruction in self.computations[name].values():
        again = self.rounds_of(name, instruction) or 1 if instruction.opcode == 'while' else 0
        for called, rounds in instruction.called:
          visit(called, times * (again or rounds))
    visit(self.entry, 1)
    return count

  def rounds_of(self, computation: str, loop: Instruction) -> int | None:
    """How often a loop runs.

    The TPU compiler's text has no trip counts, but a counted loop shows its own:
    a counter from a constant, by a constant, to a constant.

    Args:
      computation: the name of that which the loop is in.
      loop: an instruction `while`.

    Returns:
      The rounds, or None if they do not follow from the text.
    """
    if loop.rounds is not None:
      return loop.rounds
    test, body = (self.computations[loop.loop_part(k)] for k in ('condition', 'body'))
    compare = _source(test, next(i.name for i in test.values() if i.is_root))
    if compare.opcode != 'compare' or compare.attribute('direction') not in ('LT', 'NE'):
      return None
    counter, limit = (_source(test, name) for name in compare.operands)
    initial = _source(self.computations[computation], loop.operands[0])
    result = _source(body, next(i.name for i in body.values() if i.is_root))
    if counter.opcode != 'get-tuple-element' or {initial.opcode, result.opcode} != {'tuple'}:
      return None
    outside = lambda at: _source(self.computations[computation], initial.operands[at])
    at = int(counter.attribute('index'))
    if limit.opcode == 'get-tuple-element':  # a constant that the loop carries along
      carried = int(limit.attribute('index'))
      kept = _source(body, result.operands[carried])
      limit = outside(carried) if kept.attribute('index') == str(carried) else limit
    add = _source(body, result.operands[at])
    terms = [_source(body, name) for name in add.operands] if add.opcode == 'add' else []
    step = next((t for t in terms if t.opcode == 'constant'), None)
    numbers = [_integer(c) for c in (outside(at), step, limit)]
    if None in numbers or str(at) not in [t.attribute('index') for t in terms]:
      return None
    start, step, limit = numbers
    return max(-((start - limit) // step), 0) if step > 0 else None


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


def _source(computation, name):
  """The instruction `name`, or that of which it is a copy."""
  instruction = computation[name]
  while instruction.opcode in ('copy', 'bitcast') and instruction.operands:
    instruction = computation[instruction.operands[0]]
  return instruction


def _integer(instruction):
  """What a constant holds; None of anything else."""
  is_one = instruction is not None and instruction.opcode == 'constant'
  return int(instruction.literal) if is_one and re.fullmatch(r'-?\d+', instruction.literal) else None


def _instruction(line, found):
  end = _closing(line, found.end() - 1)
  shapes = tuple(Shape(dtype, tuple(int(n.lstrip('<=')) for n in dims.split(',') if n), layout)
                 for dtype, dims, layout in _SHAPE.findall(found[3]))
  return Instruction(
      name=found[2], opcode=found[4], shapes=shapes, is_root=bool(found[1]),
      operands=tuple(_NAME.findall(line[found.end():end])), rest=line[end + 1:],
      literal=line[found.end():end] if found[4] in ('constant', 'parameter') else '')


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
