"""What a compiled program does, instruction by instruction, loops counted as often as they run.

XLA's own analysis counts the body of a loop once. Here every instruction has its
floating-point operations, its bytes of memory and the cycles that the TPU
compiler expects, and how often it runs.
"""

import math
import re
from typing import NamedTuple

from gshard_tf.runtime import collectives
from gshard_tf.runtime import hlo
from gshard_tf.runtime import topologies

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_LABELS = re.compile(r'(\w+)_(\w+)->(\w+)')
# They name what is elsewhere, or stand for what another instruction does.
_FREE = {'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while', 'conditional',
         'call', 'after-all', 'partition-id', 'replica-id', 'iota', 'opt-barrier'}
_ALLOCATION = 'custom_call_target="AllocateBuffer"'
_SLICES = ('dynamic-slice', 'slice', 'gather')


class Work(NamedTuple):
  """What one instruction of the schedule does in one run of it, on one core.

  Attributes:
    instruction: itself.
    times: how often it runs in one run of the program.
    flops: floating-point operations of its products of matrices.
    bytes: read from and written to memory, its operands and results.
    cycles: the compiler's expectation; 0 where it has none, as for collectives.
  """
  instruction: hlo.Instruction
  times: int
  flops: int
  bytes: int
  cycles: int


def work(module: hlo.Module) -> list[Work]:
  """The work of every scheduled instruction.

  Args:
    module: compiled for a TPU.

  Returns:
    In the order of the text; what is inside of a fusion counts as the fusion.
  """
  inside = {name for instructions in module.computations.values()
            for i in instructions.values() if i.opcode in ('fusion', 'async-start')
            for name, _ in i.called}
  found = []
  for name, times in module.runs().items():
    if not times or name in inside:
      continue
    computation = module.computations[name]
    for i in computation.values():
      if i.opcode in _FREE or i.opcode.endswith('-done') or _ALLOCATION in i.rest:
        continue
      cycles = _CYCLES.search(i.rest)
      found.append(Work(i, times, _flops(module, computation, i), _bytes(module, computation, i),
                        int(cycles[1]) if cycles else 0))
  return found


def uncounted_loops(module: hlo.Module) -> int:
  """Loops that run an unknown number of times, and count once."""
  return sum(module.rounds_of(name, i) is None
             for name, instructions in module.computations.items()
             for i in instructions.values() if i.opcode == 'while')


def optimal_seconds(works: list[Work], flops_per_second: float, bytes_per_second: float,
                    once: bool = False) -> float:
  """Seconds of a core that always runs at one of its two limits.

  XLA's `optimal_seconds` is the same sum: for each instruction the longer of its
  arithmetic and its memory traffic, nothing at the same time as another.

  Args:
    works: from `work`.
    flops_per_second: of the matrix units.
    bytes_per_second: of the memory.
    once: count loops once, as XLA does.

  Returns:
    Seconds.
  """
  return sum((1 if once else w.times) *
             max(w.flops / flops_per_second, w.bytes / bytes_per_second) for w in works)


def schedule_seconds(works: list[Work], found: list[collectives.Collective],
                     topology: topologies.Topology) -> float | None:
  """Seconds by the compiler's own cycles, one operation after another.

  It has none for collectives, which take what the links allow.

  Args:
    works: from `work`.
    found: the program's collectives.
    topology: the slice that the program is for.

  Returns:
    Seconds; None where the clock is not public.
  """
  if topology.generation.clock is None:
    return None
  cycles = sum(w.times * w.cycles for w in works)
  return cycles / topology.generation.clock + sum(
      c.times * _collective_seconds(c, topology) for c in found)


def _collective_seconds(c, topology):
  """Of one collective; an all-reduce is a reduce-scatter and an all-gather."""
  if c.kind == 'all-to-all':
    return topology.all_to_all_seconds(c.bytes)
  halves = {'all-reduce': 2, 'all-gather': 1, 'reduce-scatter': 1}.get(c.kind, 0)
  whole = max(c.bytes, c.operand_bytes)
  if c.group_size < topology.cores:
    return halves / 2 * topology.ring_seconds(whole, c.group_size)
  return halves / 2 * topology.all_reduce_seconds(whole)


def _flops(module, computation, i):
  """Operations of the products in an instruction, and in what it calls."""
  if i.opcode == 'convolution':
    return _convolution_flops(*(computation[o].shape for o in i.operands), i)
  if i.opcode == 'dot':
    lhs = computation[i.operands[0]].shape
    contracted = math.prod(lhs.dims[d] for d in i.integers('lhs_contracting_dims'))
    return 2 * math.prod(i.shape.dims) * contracted
  if i.opcode not in ('fusion', 'async-start'):
    return 0
  return sum(_flops(module, module.computations[name], inner)
             for name, _ in i.called for inner in module.computations[name].values())


def _convolution_flops(lhs, rhs, i):
  """Of a convolution; a TPU computes all products so, batches as spatial dimensions."""
  labels = _LABELS.match(i.attribute('dim_labels'))
  lhs, rhs, out = (dict(zip(label, s.dims)) for label, s in zip(labels.groups(), (lhs, rhs, i.shape)))
  window = dict(re.findall(r'(\w+)=([\dx_\-]+)', i.attribute('window')))
  sizes = lambda key, d: int(window[key].split('x')[d]) if key in window else 1
  flops = 2 * out['b'] * out['f'] * rhs['i'] // (int(i.attribute('batch_group_count') or 1))
  for d, label in enumerate(sorted(k for k in out if k.isdigit())):
    pad = int(window['pad'].split('x')[d].split('_')[0]) if 'pad' in window else 0
    dilation = sizes('lhs_dilate', d)
    reach = (lhs[label] - 1) * dilation
    flops *= sum(0 <= at <= reach and at % dilation == 0
                 for o in range(out[label]) for k in range(rhs[label])
                 for at in [o * sizes('stride', d) + k * sizes('rhs_dilate', d) - pad])
  return flops


def _bytes(module, computation, i):
  """Of the operands that are read and the results that are written."""
  read = [_read(module, i, n, computation[o].padded_bytes) for n, o in enumerate(i.operands)]
  return sum(read) + _written(module, computation, i)


def _read(module, i, n, whole):
  """Bytes that `i` reads of its operand `n`, of so many: of a slice its own."""
  if i.opcode in _SLICES and n == 0:
    return min(whole, i.padded_bytes)
  if i.opcode == 'dynamic-update-slice' and n == 0:
    return 0
  if i.opcode != 'fusion':
    return whole
  inner = module.computations[i.called[0][0]]
  parameter = next((p for p in inner.values() if p.opcode == 'parameter' and p.literal == str(n)),
                   None)
  return min(whole, _read_inside(module, inner, parameter.name, whole)) if parameter else whole


def _read_inside(module, computation, name, whole):
  total = 0
  for user in computation.values():
    for n, operand in enumerate(user.operands):
      if operand == name:
        renamed = user.opcode == 'bitcast' and not user.is_root
        total += (_read_inside(module, computation, user.name, whole) if renamed
                  else _read(module, user, n, whole))
  return total


def _written(module, computation, i):
  """Bytes of the result that are new: of an update in place those of the update."""
  if i.opcode == 'dynamic-update-slice':
    return computation[i.operands[1]].padded_bytes
  if i.opcode == 'bitcast':
    return _written(module, computation, computation[i.operands[0]])
  if i.opcode == 'tuple':
    return sum(_written(module, computation, computation[o]) for o in i.operands)
  if i.opcode != 'fusion':
    return i.padded_bytes
  inner = module.computations[i.called[0][0]]
  return min(i.padded_bytes, _written(module, inner, next(r for r in inner.values() if r.is_root)))
