"""The collectives of a partitioned program: what moves between devices, and why.

`read` lists them, from HLO text alone; `totals` counts them by kind.
"""

import dataclasses
from typing import Iterable, NamedTuple

import numpy as np

from gshard_tf.runtime import hlo
from gshard_tf.runtime import tiles

KINDS = ('all-to-all', 'all-gather', 'all-reduce', 'reduce-scatter', 'collective-permute',
         'ragged-all-to-all', 'collective-broadcast')


@dataclasses.dataclass(frozen=True)
class Collective:
  """One array that is sent.

  Where the compiler combined collectives of several arrays, each array is one of
  these, and `name` is the same.

  Attributes:
    name: of the instruction.
    kind: one of `KINDS`.
    shape: of the result on one device. Of an all-to-all between parts, of one.
    bytes: of the result on one device, in one run of the instruction.
    operand_bytes: what a device gives to it.
    groups: int [groups, size], devices that exchange; of a collective-permute pairs
      of sender and receiver.
    times: how often it runs in one run of the program.
    op_name: the operation that caused it.
    dimensions: along which it splits or joins.
  """
  name: str
  kind: str
  shape: hlo.Shape
  bytes: int
  operand_bytes: int
  groups: np.ndarray
  times: int
  op_name: str
  dimensions: tuple[int, ...]

  @property
  def group_size(self) -> int:
    """Devices in a group."""
    return self.groups.shape[1]


class Total(NamedTuple):
  """The collectives of one kind: how many, and the bytes of their results a device."""
  count: int
  bytes: int


def read(module: hlo.Module) -> list[Collective]:
  """Lists the collectives of a program.

  Args:
    module: partitioned. A pair of start and done counts once.

  Returns:
    In the order of the text.
  """
  runs, found = module.runs(), []
  for name, instructions in module.computations.items():
    for instruction in instructions.values():
      if runs[name] and instruction.opcode.removesuffix('-start') in KINDS:
        found += _parts(instruction, instructions, runs[name], module.partitions)
  return found


def totals(collectives: Iterable[Collective]) -> dict[str, Total]:
  """Counts instructions and sums bytes by kind, of all runs of each."""
  times, size = {}, {}
  for c in collectives:
    times.setdefault(c.kind, {})[c.name] = c.times
    size[c.kind] = size.get(c.kind, 0) + c.bytes * c.times
  return {kind: Total(sum(times[kind].values()), size[kind]) for kind in sorted(size)}


def _parts(instruction, instructions, times, partitions):
  """The arrays of one collective."""
  kind = instruction.opcode.removesuffix('-start')
  users = [i for i in instructions.values() if instruction.name in i.operands]
  done = next((i for i in users if i.opcode == f'{kind}-done'), instruction)
  given = [instructions[name] for name in instruction.operands if name in instructions]
  whole = Collective(
      name=instruction.name, kind=kind, shape=done.shape, bytes=done.bytes,
      operand_bytes=sum(g.bytes for g in given) or done.bytes,
      groups=tiles.groups(instruction.rest, partitions), times=times,
      op_name=instruction.op_name, dimensions=instruction.integers('dimensions'))
  if len(done.shapes) == 1 or kind == 'all-to-all':
    return [whole]
  # XLA joins the names of what it combines; the parts' own are at their uses.
  names = {int(i.attribute('index')): i.op_name for i in instructions.values()
           if i.opcode == 'get-tuple-element' and done.name in i.operands}
  return [dataclasses.replace(
      whole, shape=shape, bytes=shape.bytes, op_name=names.get(n) or whole.op_name,
      operand_bytes=given[n].bytes if len(given) == len(done.shapes) else shape.bytes)
          for n, shape in enumerate(done.shapes)]
