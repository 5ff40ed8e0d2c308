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
from typing import NamedTuple

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
  letters: str
  mapping: tuple[str | tuple[str, ...] | None, ...]


@dataclasses.dataclass(frozen=True)
class Cause:
  """Why a collective is there.

  Attributes:
    origin: the layer and the operation.
    axes: mesh axes along which its groups lie.
    shape: the whole tensor that it moves; of one that could not be traced, what
      a device gets.
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


def rematerialized(messages: str) -> frozenset[str]:
  """The operations that XLA warned it would copy whole onto every device.

  Args:
    messages: what XLA wrote while it compiled.

  Returns:
    Their op names.
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
  moved = _moved(collective, graph)
  if moved is None:
    return dataclasses.replace(cause, fix=Fix(
        f'annotate the operands and the result of {_at(origin)}', '', ()))
  user, tensor = moved
  reshard = _Reshard(graph, user, tensor, axes)
  cause = dataclasses.replace(cause, shape=tensor.shape, before=reshard.before,
                              after=reshard.after)
  if permuted and user.opcode in _HALO:
    return dataclasses.replace(cause, asked=f'neighbours\' edges, for {user.opcode}')
  gathered = collective.kind == 'all-gather'
  fix = (reshard.weight_fix() or reshard.whole_fix(gathered, collective.op_name in whole)
         or reshard.lost_fix() or reshard.round_trip_fix())
  return dataclasses.replace(cause, fix=fix, asked='' if fix else reshard.asked())


def _moved(collective, graph):
  """The instruction that needs the reshard, and the operand that is moved."""
  itemsize = hlo.Shape(collective.shape.dtype, ()).bytes
  sent = collective.operand_bytes // itemsize
  for user in graph.named[collective.op_name]:
    for tensor in graph.operands(user):
      axes, dims = graph.axes(tensor), tensor.shape.dims
      if axes is None or any(axes):
        shard = tiles.shard(graph.mesh, dims, axes) if axes else ()
        if not axes or math.prod(shard) == sent:
          return user, tensor
  return None


class _Reshard:
  """A tensor that changes its layout for a user.

  Attributes:
    before: the axes of its dimensions; None if they do not follow the mesh.
    after: the same as the user needs it.
  """

  def __init__(self, graph, user, tensor, group_axes):
    self._graph, self._user, self._tensor = graph, user, tensor
    self._annotated = graph.is_annotation(user)
    self.before = graph.axes(tensor)
    self.after = self._after(group_axes)
    if self._annotated:
      self._goals = [(user, tuple(range(len(tensor.shape.dims))))]
    else:
      self._goals = list(graph.next_annotations(tensor, through=user))

  def _after(self, group_axes):
    if self._annotated:
      return self._graph.axes(self._user)
    if self.before is None:
      return None
    return tuple(tuple(a for a in axes if a not in group_axes) for axes in self.before)

  def _lost(self):
    """The dimensions that lose axes, and these axes."""
    pairs = zip(self.before or (), self.after or ())
    lost = {d: set(b) - set(a) for d, (b, a) in enumerate(pairs)}
    return {d: axes for d, axes in lost.items() if axes}

  def _asks(self, goal, dims):
    """Whether an annotation wants the lost axes off their dimensions."""
    wanted = self._graph.axes(goal) or ()
    used = {a for axes in wanted for a in axes}
    return all(not axes & set(wanted[dims[d]]) if dims[d] is not None else axes <= used
               for d, axes in self._lost().items())

  def asked(self) -> str:
    """The two annotations between which the layout changes."""
    goal = next(g for g, dims in self._goals if self._asks(g, dims))
    return (f'{self._graph.label(self._tensor) or "what comes before"} -> '
            f'{self._graph.origin(goal).letters or "an annotation"}')

  def lost_fix(self) -> Fix | None:
    """Of a layout that no annotation asks to give up."""
    if any(self._asks(goal, dims) for goal, dims in self._goals):
      return None
    origin = self._graph.origin(self._user)
    if self._goals:
      goal = self._goals[0][0]
      letters, mapping = self._graph.origin(goal).letters, self._graph.axes(goal)
      return Fix(f'annotate {letters!r} right after {_at(origin)}', '', _mapping(mapping))
    mapping = [()] * len(self._user.shape.dims)
    to = self._graph.dim_map(self._user, self._user.operands.index(self._tensor.name))
    for place, axes in zip(to, self.before or ()):
      if place is not None:
        mapping[place] = axes
    return Fix(f'annotate the result of {_at(origin)} as {_text(mapping)}', '', _mapping(mapping))

  def round_trip_fix(self) -> Fix | None:
    """Of a layout that one annotation gives up and the next takes up again."""
    goal, dims = next((g, d) for g, d in self._goals if self._asks(g, d))
    wanted = list(self._graph.axes(goal) or ())
    lost = {dims[d]: axes for d, axes in self._lost().items()}
    if None in lost or any(axes & set(a) for axes in lost.values() for a in wanted):
      return None
    after = list(self._graph.next_annotations(goal))
    for later, places in after:
      again = self._graph.axes(later) or ()
      if not all(places[d] is not None and axes <= set(again[places[d]])
                 for d, axes in lost.items()):
        return None
    if not lost or not after:
      return None
    for d, axes in lost.items():
      wanted[d] = tuple(a for a in self._graph.mesh.axis_names if a in axes) + wanted[d]
    letters = self._graph.origin(goal).letters
    again = self._graph.origin(after[0][0])
    return Fix(f'{letters!r} gives up what {again.letters!r} in {again.layer} takes up again: '
               f'make its entry in the sharding table {_text(wanted)}', letters, _mapping(wanted))

  def whole_fix(self, gathered: bool, warned: bool) -> Fix | None:
    """Of a tensor that is copied whole onto every device between two layouts."""
    lost = {a for axes in self._lost().values() for a in axes}
    split_again = {a for axes in self.after or () for a in axes}
    if not warned and not (self._annotated and gathered and lost & split_again):
      return None
    origin = self._graph.origin(self._user)
    what = f'the entry {origin.letters!r}' if origin.letters else 'what follows'
    return Fix(f'{_at(origin)} goes by a whole copy on every device: give {what} the layout before '
               f'it, {_text(self.before or ())}, or change one dimension at a time',
               origin.letters or '', _mapping(self.before or ()))

  def weight_fix(self) -> Fix | None:
    """Of a weight that is brought together, or moved, for its use."""
    weight = self._graph.weight(self._tensor)
    if self._annotated or not weight:
      return None
    path, letters, dims = weight
    fitting = self._fitting()
    used, mapping = set(), []
    for d in dims:
      axes = tuple(a for a in (fitting[d] if d is not None else ()) if a not in used)
      used |= set(axes)
      mapping.append(axes)
    now = [self.before[d] if d is not None else () for d in dims] if self.before else None
    if mapping == now:
      mapping = [()] * len(dims)
    layout = _text(mapping)
    keep = 'keep it whole on every device' if not used else 'split it as its use does'
    return Fix(f'weight {path} is {_text(now or ())}, which {_at(self._graph.origin(self._user))} '
               f'cannot use: make its entry {letters!r} in the sharding table {layout} to {keep}, or '
               'annotate its use', letters, _mapping(mapping))

  def _fitting(self):
    """For each dimension of a dot's operand the axes that its other tensors have there."""
    rank = len(self._tensor.shape.dims)
    if self._user.opcode != 'dot':
      return [()] * rank
    side = self._user.operands.index(self._tensor.name)
    other = self._graph.operands(self._user)[1 - side]
    other_axes = self._graph.axes(other) or ((),) * len(other.shape.dims)
    names = ('lhs', 'rhs') if side == 0 else ('rhs', 'lhs')
    fitting = [()] * rank
    for kind in ('batch', 'contracting'):
      mine, theirs = (self._user.integers(f'{n}_{kind}_dims') for n in names)
      for d, e in zip(mine, theirs):
        fitting[d] = other_axes[e]
    contracted = self._user.integers(f'{names[0]}_contracting_dims')
    for goal, dims in self._goals[:1]:
      wanted = self._graph.axes(goal) or ()
      for d, place in enumerate(dims):
        if place is not None and d not in contracted:
          fitting[d] = wanted[place]
    return fitting


def _at(origin):
  return f'{origin.op} in {origin.layer}'


def _mapping(axes):
  """Axes as an entry of a sharding table."""
  return tuple(None if not a else a[0] if len(a) == 1 else tuple(a) for a in axes)


def _text(axes):
  entries = [str(e) if e is None or isinstance(e, str) else f'({", ".join(e)})'
             for e in _mapping(axes)]
  return f'({", ".join(entries)})'
