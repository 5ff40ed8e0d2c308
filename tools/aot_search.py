"""The largest model of a family that fits a slice.

One of a model's constants grows until the compiler refuses. The weights alone
give the first guess; then the memory of two compiled models, one that fits and
one that does not, gives the next between them, until they are neighbours.
"""

import math
import sys
from typing import Callable, NamedTuple

from gshard_tf import scaling
from gshard_tf.params import variants
from tools import processes

WAYS = ('experts', 'layers', 'hidden')
_LAYERS = 2  # of a stack at a time: a dense and a sparse one
_HIDDEN_STEPS = 8  # the width grows by an eighth of the model's own
_WEIGHT_COPIES = 2  # a weight and its gradient
_FARTHEST = 4  # times the model's own size, for one guess


class Tried(NamedTuple):
  """One model that was compiled.

  Attributes:
    size: how many units of what grows.
    settings: the constants.
    report: of `tools.aot_report`; None if there is none.
    fits: whether it is within the limit.
  """
  size: int
  settings: list[str]
  report: dict | None
  fits: bool


def constants(model: type, way: str, size: int) -> list[str]:
  """The constants of a larger or smaller model of a family.

  Args:
    model: the class that the family grows from.
    way: one of `WAYS`.
    size: units: what the experts of the model are multiplied by; pairs of
      layers of each stack; eighths of the model's width of the feed-forwards.

  Returns:
    Settings for `variants.variant`.
  """
  if way == 'experts':
    return [f'NUM_EXPERTS={model.NUM_EXPERTS * size}']
  if way == 'layers':
    return [f'ENCODER_LAYERS={_LAYERS * size}', f'DECODER_LAYERS={_LAYERS * size}']
  return [f'HIDDEN_DIM={model.HIDDEN_DIM * size // _HIDDEN_STEPS}']


def present(model: type, way: str) -> int:
  """The size, in the units of `constants`, that the model has itself."""
  return {'experts': 1, 'layers': model.ENCODER_LAYERS // _LAYERS, 'hidden': _HIDDEN_STEPS}[way]


def largest(model: type, topology: str, ways, compiled: Callable[[list[str]], dict],
            limit: int | None = None, say=lambda line: print(line, file=sys.stderr, flush=True)) -> dict:
  """Searches along each way, from the same model.

  Args:
    model: the class of constants to begin with.
    topology: the slice.
    ways: which of `WAYS` to go.
    compiled: makes a report of the model with other constants; raises
      FailedError.
    limit: bytes a core; by default what the slice has.
    say: takes lines of progress.

  Returns:
    The report of the model with the most weights, and beside its keys `search`:
    for each way its compiled models; and `constants`: what distinguishes it.

  Raises:
    processes.FailedError: the model to begin with could not be compiled.
  """
  say(f'{model.__name__} itself:')
  first = compiled([])
  limit = limit or first['hbm_limit']
  _say(say, first, limit)
  best, search = Tried(0, [], first, first['memory']['total'] <= limit), {}
  for way in ways:
    if way == 'experts' and not model.NUM_EXPERTS:
      continue
    weigh = lambda size, way=way: scaling.weight_bytes(
        variants.variant(model, constants(model, way, size)), topology)
    start = best._replace(size=present(model, way), settings=[], report=first,
                          fits=first['memory']['total'] <= limit)
    tried = _along(start, limit, weigh, lambda size, way=way: _try(
        compiled, constants(model, way, size), size, limit, say))
    search[way] = [dict(size=t.size, settings=t.settings, fits=t.fits, **_summary(t.report))
                   for t in tried]
    best = max([best, *(t for t in tried if t.fits)],
               key=lambda t: (t.fits, t.report['parameters']))
  return best.report | dict(
      search=search, constants=best.settings, fits=best.fits, hbm_limit=limit,
      headroom=limit - best.report['memory']['total'])


def _along(start, limit, weigh, attempt):
  """Compiles models of growing or shrinking size until two neighbours differ in fitting."""
  tried = {start.size: start}
  unit = _WEIGHT_COPIES * (weigh(start.size + 1) - weigh(start.size))
  while True:
    low = max((s for s, t in tried.items() if t.fits), default=0)
    high = min((s for s, t in tried.items() if not t.fits), default=None)
    if high is not None and high - low <= 1:
      return list(tried.values())
    known = tried[low] if low else tried[high]
    size = known.size
    if known.report:
      size += math.floor((limit - known.report['memory']['total']) / max(unit, 1))
    if low and high and tried[high].report:
      below, above = (tried[s].report['memory']['total'] for s in (low, high))
      size = low + int((high - low) * (limit - below) / max(above - below, 1))
    elif high is not None:
      size = min(size, (low + high) // 2)
    top = high - 1 if high is not None else _FARTHEST * max(low, 1)
    size = min(max(size, low + 1), top)
    tried[size] = attempt(size)


def _try(compiled, new, size, limit, say):
  say(f'{" ".join(new)}:')
  try:
    report = compiled(new)
  except processes.FailedError as error:
    say(f'  cannot be compiled here: {error}')
    return Tried(size, new, None, False)
  _say(say, report, limit)
  return Tried(size, new, report, report['memory']['total'] <= limit)


def _say(say, report, limit):
  total = report['memory']['total']
  verdict = 'fits' if total <= limit else 'does not fit'
  say(f'  {report["parameters"]:,} parameters, {total / 2**30:.2f} of {limit / 2**30:.2f} GiB a '
      f'core: {verdict} (compiled in {report["compile_seconds"]:.0f} s)')


def _summary(report):
  keys = ('parameters', 'memory', 'estimated_step_seconds', 'compile_seconds')
  return {key: report and report[key] for key in keys}
