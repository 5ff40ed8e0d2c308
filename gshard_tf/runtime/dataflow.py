"""The annotated program before the partitioner, as a graph to walk in.

The program is the HLO in which XLA has completed the annotations: every
instruction has a sharding, and the annotations stand as copies.
"""

import collections
import functools
import math
import re
from typing import Iterator, Mapping, NamedTuple

from gshard_tf import device_mesh
from gshard_tf.runtime import hlo
from gshard_tf.runtime import tiles

OPTIMIZER, MODEL = '(optimizer)', '(model)'
_FORWARDED = ('copy', 'convert', 'transpose', 'reshape', 'bitcast', 'custom-call',
              'dynamic-slice')  # of a stacked weight
_SEARCH = 300  # instructions, when looking for the next annotation

# For each dimension of one tensor the dimension of another that it becomes.
DimMap = tuple[int | None, ...]


class Origin(NamedTuple):
  """Where in the model an instruction comes from.

  Attributes:
    layer: the path of the layer; `(model)` between layers, `(optimizer)` outside
      of what TensorFlow computes.
    op: the operation below the layer, such as `einsum/Einsum`.
    letters: of an annotation, its key in the sharding table; None for others.
    backward: whether it computes gradients.
  """
  layer: str
  op: str
  letters: str | None
  backward: bool


def origin(op_name: str, layers: Mapping[str, str]) -> Origin:
  """Reads the name that an instruction has from TensorFlow.

  Args:
    op_name: such as `jit(f)/call_tf/gradient_tape/encoder.blocks_0/einsum/Einsum`.
    layers: what to call the layers, by their paths in names.

  Returns:
    The origin.
  """
  # Of names that XLA has joined, `a/(b:c)` and `a;b`, the first.
  name = re.sub(r'\(([^:()]*):[^()]*\)', r'\1', op_name).partition(';')[0]
  _, inside, path = name.rpartition('call_tf/')
  parts = [p for p in path.split('/') if p not in ('PartitionedCall', 'gradient_tape')]
  at = max((i for i, part in enumerate(parts) if part in layers), default=-1)
  layer = layers[parts[at]] if at >= 0 else MODEL if inside else OPTIMIZER
  below, letters = parts[at + 1:], None
  for before, part in zip([''] + below, below):
    if part.startswith('XlaSharding'):
      letters = re.sub(r'_\d+$', '', before)
  return Origin(layer, '/'.join(below), letters, 'gradient_tape' in path)


class Graph:
  """Instructions by name, their users, and the mesh axes they lie along.

  Attributes:
    mesh: the mesh.
    layers: what to call the layers, by their paths in names.
    instructions: of all computations, by name.
    named: those of each op name.
  """

  def __init__(self, module: hlo.Module, mesh: device_mesh.Mesh, layers: Mapping[str, str]):
    self.mesh = mesh
    self.layers = layers
    self.instructions = {name: i for c in module.computations.values() for name, i in c.items()}
    self._loops = {
        next(i.name for i in module.computations[body].values() if i.opcode == 'parameter'): loop
        for loop in self.instructions.values() if loop.opcode == 'while' for body, _ in loop.called}
    self._users = collections.defaultdict(list)
    self.named = collections.defaultdict(list)
    for instruction in self.instructions.values():
      self.named[instruction.op_name].append(instruction)
      for position, operand in enumerate(instruction.operands):
        self._users[operand].append((instruction, position))

  def operands(self, instruction: hlo.Instruction) -> list[hlo.Instruction]:
    """The instructions whose results it takes."""
    return [self.instructions[name] for name in instruction.operands]

  def origin(self, instruction: hlo.Instruction) -> Origin:
    """Where it comes from."""
    return origin(instruction.op_name, self.layers)

  def axes(self, instruction: hlo.Instruction) -> tiles.Axes | None:
    """The mesh axes of its dimensions; None where they do not follow the mesh."""
    return _axes(instruction.attribute('sharding'), len(instruction.shape.dims), self.mesh)

  def is_annotation(self, instruction: hlo.Instruction) -> bool:
    """Whether it stands for an annotation."""
    return (instruction.opcode in ('copy', 'custom-call')
            and self.origin(instruction).letters is not None)

  def annotations(self) -> list[hlo.Instruction]:
    """All annotations, in the order of the program."""
    return [i for i in self.instructions.values() if self.is_annotation(i)]

  def weight(self, instruction: hlo.Instruction) -> tuple[str, str, DimMap] | None:
    """The weight that an instruction only forwards.

    Args:
      instruction: anything.

    Returns:
      The weight's path, the letters it is annotated by, and for each dimension of
      the weight that of the instruction; None if it is no weight.
    """
    letters, chain = '', []
    while True:
      instruction = self._element(instruction)
      if instruction.opcode not in _FORWARDED or not instruction.operands:
        break
      if self.is_annotation(instruction):
        letters = self.origin(instruction).letters
      chain.append(instruction)
      instruction = self.operands(instruction)[0]
    path = re.search(r"\btheta(?:'\])?\['([^']+)'\]$", instruction.op_name)
    if instruction.opcode != 'parameter' or not path:
      return None
    dims = tuple(range(len(instruction.shape.dims)))
    for step in reversed(chain):
      dims = compose(dims, self.dim_map(step, 0))
    return path[1], letters, dims

  def _element(self, instruction):
    """What a tuple holds, also the one that a loop begins with, in place of a look into it."""
    while instruction.opcode == 'get-tuple-element':
      group = self.operands(instruction)[0]
      if group.name in self._loops:
        group = self.operands(self._loops[group.name])[0]
      if group.opcode != 'tuple':
        break
      instruction = self.operands(group)[instruction.integers('index')[0]]
    return instruction

  def label(self, instruction: hlo.Instruction) -> str:
    """The letters of the annotation whose layout an instruction still has."""
    queue, seen = collections.deque([instruction]), {instruction.name}
    while queue and len(seen) < _SEARCH:
      found = queue.popleft()
      if self.is_annotation(found):
        return self.origin(found).letters
      same = [o for o in self.operands(found)
              if o.shape.dims == instruction.shape.dims and o.name not in seen]
      queue += same
      seen |= {o.name for o in same}
    return ''

  def next_annotations(self, start: hlo.Instruction,
                       through: hlo.Instruction | None = None
                      ) -> Iterator[tuple[hlo.Instruction, DimMap]]:
    """Walks from a tensor to the annotations that come next.

    Args:
      start: the tensor.
      through: if given, only by way of this user.

    Yields:
      Each annotation, nearest first, and for each dimension of `start` that of
      the annotated tensor.
    """
    identity = tuple(range(len(start.shape.dims)))
    queue, seen = collections.deque([(start, identity)]), {start.name}
    while queue and len(seen) < _SEARCH:
      instruction, dims = queue.popleft()
      for user, position in self._users[instruction.name]:
        if user.name in seen or (through and instruction is start and user is not through):
          continue
        seen.add(user.name)
        there = compose(dims, self.dim_map(user, position))
        if self.is_annotation(user):
          yield user, there
        else:
          queue.append((user, there))

  def dim_map(self, instruction: hlo.Instruction, position: int) -> DimMap:
    """Which dimension of the result each dimension of an operand becomes."""
    operands = self.operands(instruction)
    dims = dim_map(instruction, [o.shape.dims for o in operands], position)
    if instruction.opcode == 'gather' and position == 0:
      # tf.gather of batches: an iota is concatenated with the indices.
      pieces = self.operands(operands[1]) if operands[1].opcode == 'concatenate' else ()
      places = dim_map(instruction, [o.shape.dims for o in operands], 1)
      for d, piece in zip(instruction.integers('start_index_map'), pieces):
        counted = self._counted(piece)
        if counted is not None:
          dims = (*dims[:d], places[counted], *dims[d + 1:])
    return dims

  def _counted(self, instruction):
    """The dimension along which an instruction only counts; None if there is none."""
    if instruction.opcode == 'broadcast':
      inner = self._counted(self.operands(instruction)[0])
      return None if inner is None else instruction.integers('dimensions')[inner]
    return instruction.integers('iota_dimension')[0] if instruction.opcode == 'iota' else None


def compose(first: DimMap, second: DimMap) -> DimMap:
  """From the dimensions that `first` is of to those that `second` leads to."""
  return tuple(None if d is None else second[d] for d in first)


def dim_map(instruction: hlo.Instruction, operands: list[tuple[int, ...]],
            position: int) -> DimMap:
  """Which dimension of the result each dimension of an operand becomes.

  Args:
    instruction: the instruction.
    operands: the shapes of its operands.
    position: which operand.

  Returns:
    For each dimension of the operand one of the result, or None where it is
    summed over, or its place is not known.
  """
  given, result = operands[position], instruction.shape.dims
  if instruction.opcode == 'dot':
    return _through_dot(instruction, list(map(len, operands)), position)
  if instruction.opcode == 'broadcast':
    return instruction.integers('dimensions')
  if instruction.opcode == 'transpose':
    order = instruction.integers('dimensions')
    return tuple(order.index(d) for d in range(len(given)))
  if instruction.opcode == 'reduce' and given:
    kept = [d for d in range(len(given)) if d not in instruction.integers('dimensions')]
    return tuple(kept.index(d) if d in kept else None for d in range(len(given)))
  if instruction.opcode in ('reshape', 'bitcast'):
    # A dimension stays, or becomes the major part of one, where as many elements
    # lie before it.
    starts = {math.prod(result[:d]): d for d in range(len(result)) if result[d] > 1}
    return tuple(starts.get(math.prod(given[:d])) if n > 1 else None
                 for d, n in enumerate(given))
  if instruction.opcode == 'gather':
    offset = instruction.integers('offset_dims')
    if position == 0:
      collapsed = instruction.integers('collapsed_slice_dims')
      to = dict(zip((d for d in range(len(given)) if d not in collapsed), offset))
    else:
      vector = instruction.integers('index_vector_dim')[0]
      to = dict(zip((d for d in range(len(given)) if d != vector),
                    (d for d in range(len(result)) if d not in offset)))
    return tuple(to.get(d) for d in range(len(given)))
  if len(given) == len(result) and instruction.opcode != 'scatter':
    return tuple(range(len(given)))
  return (None,) * len(given)


def _through_dot(instruction, ranks, position):
  sides = [(instruction.integers(f'{s}_batch_dims'), instruction.integers(f'{s}_contracting_dims'))
           for s in ('lhs', 'rhs')]
  free = [[d for d in range(rank) if d not in batch + contracted]
          for rank, (batch, contracted) in zip(ranks, sides)]
  batch, _ = sides[position]
  results = [*batch, *free[position]]
  skipped = 0 if position == 0 else len(free[0])
  places = {d: n if d in batch else n + skipped for n, d in enumerate(results)}
  return tuple(places.get(d) for d in range(ranks[position]))


@functools.lru_cache(maxsize=4096)
def _axes(text, rank, mesh):
  return tiles.axes_of_sharding(text, rank, mesh)
