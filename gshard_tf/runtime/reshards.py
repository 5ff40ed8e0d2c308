"""Why each collective is there, and which of them nobody asked for.

A collective is asked for where it sums what devices have computed in parts, and
where two annotations lay one tensor out in different ways. The others are
reshards that the partitioner found necessary: a weight that is brought together
for its use, a layout that is given up and taken up again, a tensor copied whole
onto every device on its way to another layout. For each the annotation is named
that would make it unnecessary.
"""

import dataclasses
import math
import re
from typing import Iterator, NamedTuple

from gshard_tf.runtime import collectives
from gshard_tf.runtime import dataflow
from gshard_tf.runtime import hlo
from gshard_tf.runtime import tiles

_SUMS = ('all-reduce', 'reduce-scatter')
# Neighbours exchange their edges: what splitting a spatial dimension means
# (2006.16668, section 3.3.3).
_HALO = ('convolution', 'reduce-window', 'select-and-scatter', 'slice', 'pad', 'concatenate',
         'reverse')
_REMATERIALIZED = re.compile(r'Involuntary full rematerialization.*?op_name="([^"]*)"', re.S)


class Fix(NamedTuple):
  """The annotation that would remove a reshard.

  Attributes:
    text: a sentence to the user.
    letters: the entry of the sharding table to change; empty where a new
      annotation is wanted.
    mapping: the mesh axes of each dimension, for the entry or the annotation.
  """
  text: str
  letters: str = ''
  mapping: tuple[str | tuple[str, ...] | None, ...] = ()


@dataclasses.dataclass(frozen=True)
class Cause:
  """Why a collective is there.

  Attributes:
    origin: the layer and the operation.
    axes: mesh axes along which its groups lie.
    shape: the whole tensor that it moves; of a sum, what a device gets.
    before: the axes of the tensor's dimensions before; None if not known.
    after: the same after it.
    asked: what asked for it; empty if nothing did.
    fix: what would remove it, of one that nobody asked for.
  """
  origin: dataflow.Origin
  axes: tuple[str, ...]
  shape: hlo.Shape
  before: tiles.Axes | None = None
  after: tiles.Axes | None = None
  asked: str = ''
  fix: Fix | None = None


def table_entry(axes: tiles.Axes) -> tuple[str | tuple[str, ...] | None, ...]:
  """Axes as a sharding table has them."""
  return tuple(None if not a else a[0] if len(a) == 1 else tuple(a) for a in axes)


def rematerialized(messages: str) -> frozenset[str]:
  """The tensors that XLA warned it would copy whole onto every device.

  Args:
    messages: what XLA wrote while it compiled.

  Returns:
    The op names of their instructions.
  """
  return frozenset(_REMATERIALIZED.findall(messages))


def explain(collective: collectives.Collective, graph: dataflow.Graph,
            whole: frozenset[str] = frozenset()) -> Cause:
  """Says why a collective is there.

  Args:
    collective: of the compiled program.
    graph: of the same program before it was partitioned.
    whole: from `rematerialized`.

  Returns:
    The cause.
  """
  origin = dataflow.origin(collective.op_name, graph.layers)
  permuted = collective.kind == 'collective-permute'  # pairs, not groups
  axes = () if permuted else tiles.axes_of_groups(collective.groups, graph.mesh)
  cause = Cause(origin, axes, collective.shape)
  if collective.kind in _SUMS:
    return dataclasses.replace(cause, asked=f'a sum over {" x ".join(axes) or "devices"}')
  reshard = _reshard(collective, graph, axes)
  if reshard is None:
    return dataclasses.replace(cause, fix=Fix(
        f'annotate the operands and the result of {_at(origin)}'))
  cause = dataclasses.replace(cause, shape=reshard.tensor.shape, before=reshard.before,
                              after=reshard.after)
  if permuted and reshard.user.opcode in _HALO:
    return dataclasses.replace(cause, asked=f"neighbours' edges, for {reshard.user.opcode}")
  fix = _fix(reshard, collective.kind == 'all-gather', whole)
  return dataclasses.replace(cause, fix=fix, asked='' if fix else reshard.asked())


class _Reshard:
  """A tensor that changes its layout.

  Attributes:
    graph: the program.
    user: the instruction that needs the change; the tensor itself where its own
      computation left it in another layout than it was to have.
    tensor: what is moved.
    before: the axes of its dimensions; None if they are not known.
    after: the same as the user needs it.
    annotated: whether an annotation is the user.
    goals: the annotations that come next, with the dimension of each that a
      dimension of the tensor becomes.
  """

  def __init__(self, graph, user, tensor, before, after):
    self.graph, self.user, self.tensor = graph, user, tensor
    self.before, self.after = before, after
    self.annotated = graph.is_annotation(user)
    if self.annotated:
      self.goals = [(user, tuple(range(len(tensor.shape.dims))))]
    else:
      self.goals = list(graph.next_annotations(tensor, None if user is tensor else user))

  def lost(self) -> dict[int, set[str]]:
    """The dimensions that lose axes, and these axes."""
    if self.before is None:
      return {}
    after = self.after or ((),) * len(self.before)
    lost = {d: set(b) - set(a) for d, (b, a) in enumerate(zip(self.before, after))}
    return {d: axes for d, axes in lost.items() if axes}

  def askers(self) -> Iterator[tuple[hlo.Instruction, dataflow.DimMap]]:
    """The goals that want the lost axes off their dimensions."""
    for goal, dims in self.goals:
      wanted = self.graph.axes(goal) or ()
      used = {a for axes in wanted for a in axes}
      off = [not axes & set(wanted[dims[d]]) if dims[d] is not None else axes <= used
             for d, axes in self.lost().items()]
      # Of a change in several steps one is enough.
      if all(off) if self.after is not None else any(off) or self.before is None:
        yield goal, dims

  def asked(self) -> str:
    """The two annotations between which the layout changes."""
    goal, _ = next(self.askers())
    start = self.graph.operands(self.user)[0] if self.user is self.tensor else self.tensor
    return (f'{self.graph.label(start) or "what comes before"} -> '
            f'{self.graph.origin(goal).letters or "an annotation"}')


def _reshard(collective, graph, group_axes):
  """The tensor that a collective moves, among those of the operation it is named after."""
  itemsize = hlo.Shape(collective.shape.dtype, ()).bytes
  sent, got = collective.operand_bytes // itemsize, collective.bytes // itemsize
  part = tuple(n // (collective.group_size if d in collective.dimensions else 1)
               for d, n in enumerate(collective.shape.dims))

  def shard(x):
    return tiles.shard(graph.mesh, x.shape.dims, graph.axes(x) or ((),) * len(x.shape.dims))

  def unlike(pair):  # the type, and the shape that is sent
    return pair[1].shape.dtype != collective.shape.dtype, shard(pair[1]) != part

  users = graph.named[collective.op_name]
  pairs = [(u, t) for u in users for t in graph.operands(u) if any(graph.axes(t) or ())]
  fits = [pair for pair in pairs if math.prod(shard(pair[1])) == sent]
  if fits:
    user, tensor = min(fits, key=unlike)
    return _Reshard(graph, user, tensor, graph.axes(tensor),
                    _after(collective, graph, user, tensor, group_axes))
  for user in users:
    axes = graph.axes(user)
    if math.prod(shard(user)) == got and axes is not None:
      before = None
      if collective.kind == 'all-gather' and len(part) == len(axes):
        before = tuple(a + group_axes * (d in collective.dimensions) for d, a in enumerate(axes))
      return _Reshard(graph, user, user, before, axes)
  if pairs:  # one of several steps
    user, tensor = max(pairs, key=lambda pair: pair[1].bytes)
    return _Reshard(graph, user, tensor, graph.axes(tensor), None)
  return None


def _after(collective, graph, user, tensor, group_axes):
  """The axes of a tensor's dimensions as its user needs it."""
  if graph.is_annotation(user):
    return graph.axes(user)
  less = [tuple(a for a in axes if a not in group_axes) for axes in graph.axes(tensor)]
  if collective.kind != 'all-gather' and graph.axes(user):
    needed = graph.axes(user)
    dims = graph.dim_map(user, user.operands.index(tensor.name))
    less = [l if d is None else needed[d] for l, d in zip(less, dims)]
  return tuple(less)


def _fix(reshard, gathered, whole):
  """What removes the reshard; None of one that is asked for."""
  fix = _weight_fix(reshard) or _whole_fix(reshard, gathered, whole)
  if fix is None and not any(reshard.askers()):
    fix = _conflict_fix(reshard) or _missing_fix(reshard)
  return fix or _round_trip_fix(reshard)


def _weight_fix(reshard):
  """Of a weight that is brought together, or moved, for its use."""
  weight = reshard.graph.weight(reshard.tensor)
  if reshard.annotated or not weight:
    return None
  path, letters, dims = weight
  fitting, mapping = _fitting(reshard), []
  for d in dims:
    used = {a for axes in mapping for a in axes}
    mapping.append(tuple(a for a in (fitting[d] if d is not None else ()) if a not in used))
  now = [reshard.before[d] if d is not None else () for d in dims]
  if mapping == now:
    mapping = [()] * len(dims)
  rank = len(letters.partition('_')[0])  # a stacked weight has a dimension more
  entry = mapping[-rank:] if letters else mapping
  purpose = 'split it as its use does' if any(mapping) else 'keep it whole on every device'
  return Fix(
      f'weight {path} lies along {_text(now)}, which {_at(reshard.graph.origin(reshard.user))} '
      f'cannot use: make its entry {letters!r} in the sharding table {_text(entry)} to '
      f'{purpose}, or annotate its use', letters, table_entry(entry))


def _fitting(reshard):
  """For each dimension of a dot's operand the axes that the other tensors have there."""
  graph, user = reshard.graph, reshard.user
  fitting = [()] * len(reshard.tensor.shape.dims)
  if user.opcode != 'dot':
    return fitting
  side = user.operands.index(reshard.tensor.name)
  other = graph.axes(graph.operands(user)[1 - side])
  mine, theirs = ('lhs', 'rhs') if side == 0 else ('rhs', 'lhs')
  contracted = user.integers(f'{mine}_contracting_dims')
  for d, e in zip(contracted, user.integers(f'{theirs}_contracting_dims')):
    fitting[d] = other[e] if other else ()
  for goal, dims in reshard.goals[:1]:
    for d, place in enumerate(dims):
      if place is not None and d not in contracted:
        fitting[d] = (graph.axes(goal) or fitting)[place]
  return fitting


def _whole_fix(reshard, gathered, whole):
  """Of a tensor that is copied whole onto every device between two layouts.

  XLA warns of most; otherwise it is a gather for an operation that only moves
  elements or takes them one by one, and that is itself split along the axes.
  """
  graph, user, tensor = reshard.graph, reshard.user, reshard.tensor
  lost = {a for axes in reshard.lost().values() for a in axes}
  again = {a for axes in graph.axes(user) or () for a in axes}
  one_by_one = math.prod(user.shape.dims) == math.prod(tensor.shape.dims)
  if not reshard.goals or user is tensor or not gathered or not (
      tensor.op_name in whole or one_by_one and lost & again):
    return None
  goal, dims = reshard.goals[0]
  mapping = [()] * len(goal.shape.dims)
  for d, axes in zip(dims, reshard.before or ()):
    if d is not None:
      mapping[d] = axes
  letters = graph.origin(goal).letters
  return Fix(f'{_at(graph.origin(user))} copies the tensor whole onto every device to bring it to '
             f'the layout of {letters!r}: make that entry {_text(mapping)} in the sharding table, '
             'or change one dimension at a time', letters, table_entry(mapping))


def _conflict_fix(reshard):
  """Of an operation that has the lost axes on another dimension of another operand."""
  graph, user = reshard.graph, reshard.user
  lost = {a for axes in reshard.lost().values() for a in axes}
  for position, other in enumerate(graph.operands(user) if user is not reshard.tensor else ()):
    axes, letters = graph.axes(other) or (), graph.label(other)
    to = graph.dim_map(user, position)
    kept = {a for goal, _ in reshard.goals for wanted in graph.axes(goal) or () for a in wanted}
    if other is reshard.tensor or not letters or not lost <= kept:
      continue
    clash = [d for d, a in enumerate(axes) if lost & set(a) and to[d] is None]
    if clash:
      mapping = [() if d in clash else a for d, a in enumerate(axes)]
      return Fix(f'{_at(graph.origin(user))} takes {letters!r} along {_text(axes)} beside '
                 f'{graph.label(reshard.tensor)!r}: make its entry in the sharding table '
                 f'{_text(mapping)}', letters, table_entry(mapping))
  return None


def _missing_fix(reshard):
  """Of a layout that no annotation asks to give up."""
  graph, user = reshard.graph, reshard.user
  origin = graph.origin(user)
  if reshard.goals:
    goal = reshard.goals[0][0]
    letters, mapping = graph.origin(goal).letters, table_entry(graph.axes(goal) or ())
    if user.name in goal.operands:
      return Fix(f'{_at(origin)} does not keep the layout of {letters!r}, its result: annotate '
                 'its operands to agree with it', mapping=mapping)
    return Fix(f'annotate {letters!r} right after {_at(origin)}', mapping=mapping)
  mapping = [()] * len(user.shape.dims)
  if user is not reshard.tensor:
    to = graph.dim_map(user, user.operands.index(reshard.tensor.name))
    for place, axes in zip(to, reshard.before or ()):
      if place is not None:
        mapping[place] = axes
  return Fix(f'annotate the result of {_at(origin)} as {_text(mapping)}', mapping=table_entry(mapping))


def _round_trip_fix(reshard):
  """Of a layout that one annotation gives up and all that come next take up again."""
  graph = reshard.graph
  goal, dims = next(reshard.askers())
  wanted = list(graph.axes(goal) or ())
  lost = {dims[d]: axes for d, axes in reshard.lost().items()}
  later = list(graph.next_annotations(goal))
  if not lost or not later or None in lost or any(
      axes & set(a) for axes in lost.values() for a in wanted):
    return None
  for annotation, places in later:
    again = graph.axes(annotation) or ()
    if any(places[d] is None or not axes <= set(again[places[d]]) for d, axes in lost.items()):
      return None
  for d, axes in lost.items():
    wanted[d] = tuple(a for a in graph.mesh.axis_names if a in axes) + wanted[d]
  letters, again = graph.origin(goal).letters, graph.origin(later[0][0])
  return Fix(f'{letters!r} gives up what {again.letters!r} in {again.layer} takes up again: '
             f'make its entry in the sharding table {_text(wanted)}', letters, table_entry(wanted))


def _at(origin):
  return f'{origin.op} in {origin.layer}'


def _text(axes):
  entries = [str(e) if e is None or isinstance(e, str) else f'({", ".join(e)})'
             for e in table_entry(axes)]
  return f'({", ".join(entries)})'
