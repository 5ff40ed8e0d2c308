"""The training loop over an artifact."""

import dataclasses
import json
import os
import signal
import time
from typing import Callable, Iterator

import jax
import numpy as np
import tensorboardX

from gshard_tf.runtime import checkpoint
from gshard_tf.runtime import evaluation
from gshard_tf.runtime import expert_log
from gshard_tf.runtime import program as program_lib

_REPORT_SECONDS = 5.


class ResumeError(ValueError):
  """A run that a checkpoint does not continue."""


@dataclasses.dataclass
class Data:
  """What a model is trained and evaluated on; batches as in the artifact.

  Attributes:
    train: from an input position to the endless batches from there on, each
      with `position`, where reading goes on after it.
    held_out: the held-out batches, anew at each call.
    unigram_nll: of a unigram model on the held-out text, nats per token.
  """
  train: Callable[[int], Iterator[dict]]
  held_out: Callable[[], Iterator[dict]]
  unigram_nll: float


@dataclasses.dataclass
class Result:
  """How a run ended; the keys are the trainer's JSON contract."""
  step: int
  loss: float | None
  tokens_per_second: float | None
  resumed_from: int | None
  held_out_nll: float
  untrained_nll: float | None
  unigram_nll: float


class LossLog:
  """`losses.jsonl`, the loss of every step, and TensorBoard events."""

  def __init__(self, folder: str, step: int):
    """Opens the log.

    Args:
      folder: where it is.
      step: the step that training goes on from; later lines, of steps that no
        checkpoint holds, are dropped.
    """
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, 'losses.jsonl')
    kept = []
    if os.path.exists(path):
      with open(path) as f:
        kept = [line for line in f if line.endswith('\n') and json.loads(line)['step'] <= step]
    with open(f'{path}.writing', 'w') as f:
      f.writelines(kept)
    os.replace(f'{path}.writing', path)
    self._losses = open(path, 'a', buffering=1)  # pylint: disable=consider-using-with
    self._events = tensorboardX.SummaryWriter(folder, flush_secs=10, purge_step=step + 1)

  def write(self, step: int, metrics: dict, tokens_per_second: float):
    """Logs one step's metrics, a dict with `loss`: numbers, and loads of experts."""
    self._losses.write(json.dumps({'step': step, 'loss': float(metrics['loss'])}) + '\n')
    self._add(step, dict(metrics, tokens_per_second=tokens_per_second))

  def write_held_out(self, step: int, metrics: dict, languages):
    """Logs held-out metrics, among them loads of experts by language."""
    suffix = '/load_by_language'
    by_layer = {name.removeprefix('experts/').removesuffix(suffix): value
                for name, value in metrics.items() if name.endswith(suffix)}
    if by_layer:
      self._events.add_image(f'held_out/experts{suffix}', expert_log.draw(by_layer, languages), step,
                             dataformats='HWC')
    self._add(step, {f'held_out/{name}': value for name, value in metrics.items()
                     if not name.endswith(suffix)})

  def _add(self, step, metrics):
    for name, value in metrics.items():
      if np.ndim(value):
        expert_log.add_load(self._events, name, value, step)
      else:
        self._events.add_scalar(name, value, step)

  def close(self):
    """Writes what is left."""
    self._losses.close()
    self._events.close()


def train(program: program_lib.Program, data: Data, logdir: str, *, max_steps: int,
          seed: int, save_every: int, say: Callable[[str], None] = print) -> Result:
  """Trains up to `max_steps`, from the newest checkpoint if there is one.

  SIGINT and SIGTERM end the run after the step under way, with a checkpoint.

  Args:
    program: the compiled model.
    data: what to train on.
    logdir: checkpoints go to `checkpoints`, events and losses to `train`.
    max_steps: steps since the very beginning.
    seed: of the initial weights, dropout and routing.
    save_every: steps between checkpoints.
    say: takes lines for the user.

  Returns:
    How it ended.

  Raises:
    ResumeError: the checkpoint is of another seed.
    FloatingPointError: the loss is not finite.
  """
  saved = checkpoint.Checkpoints(
      os.path.join(logdir, 'checkpoints'), program.artifact.weights)
  resumed_from = saved.latest_step()
  if resumed_from is None:
    state, position = program.init(np.int32(seed)), 0
  else:
    state, place = saved.restore(resumed_from, program.state_shapes, program.state_shardings)
    position = place['position']
    if place['seed'] != seed:
      raise ResumeError(f'{logdir} was trained with seed {place["seed"]}, not {seed}; give '
                        'that seed, or another logdir')
    say(f'resumed from step {resumed_from} in {logdir}')
  step, loss = resumed_from or 0, None
  log = LossLog(os.path.join(logdir, 'train'), step)

  def evaluate():
    metrics = evaluation.held_out(program, state['theta'], data.held_out())
    log.write_held_out(step, dict(metrics, unigram_nll=data.unigram_nll),
                       program.artifact.languages)
    say(f'held-out loss at step {step}: {metrics["nll"]:.4f} nats per token; '
        f'of a unigram model: {data.unigram_nll:.4f}')
    return metrics['nll']

  held_out = evaluate()
  untrained = held_out if resumed_from is None else None
  clock, stop = _Clock(step, max_steps), _Signals()
  try:
    for batch in data.train(position) if step < max_steps else ():
      position = int(batch.pop('position'))
      state, metrics = program.train(state, program.put(batch), np.int32(seed))
      metrics = jax.device_get(metrics)
      step, loss = step + 1, float(metrics['loss'])
      clock.tick(step, batch)
      log.write(step, metrics, clock.recent)
      if not np.isfinite(loss):
        raise FloatingPointError(
            f'the loss is {loss} at step {step}; the newest checkpoint is of step '
            f'{saved.latest_step()}; lower the learning rate')
      end = step == max_steps or stop.received
      if clock.due() or end:
        say(f'step {step}/{max_steps}  loss {loss:.4f}  {clock.recent:,.0f} tokens/s  '
            f'{clock.left()} left')
      if step % save_every == 0 or end:
        saved.save(step, state, {'position': position, 'seed': seed})
        held_out = evaluate()
        clock.resume()
      if end:
        break
  finally:
    saved.close()
    log.close()
    stop.restore()
  if stop.received:
    say(f'stopped by {stop.received} at step {step}; the same command resumes from there')
  return Result(step, loss, clock.mean(), resumed_from, held_out, untrained, data.unigram_nll)


class _Signals:
  """Notes SIGINT and SIGTERM instead of dying of them."""

  def __init__(self):
    self.received = None
    self._before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}

  def _note(self, number, frame):
    del frame
    self.received = signal.Signals(number).name

  def restore(self):
    for number, handler in self._before.items():
      signal.signal(number, handler)


class _Clock:
  """Tokens per second, and the time left; the first step, which compiles, aside."""

  def __init__(self, step, max_steps):
    self._first, self._step, self._max_steps = step + 1, step, max_steps
    self._seconds, self._tokens, self._reported = 0., 0, time.monotonic()
    self.recent = 0.
    self.resume()

  def resume(self):
    """Begins to count again after a pause."""
    self._last = time.monotonic()

  def tick(self, step, batch):
    """Counts a step that has just ended."""
    seconds, self._step = time.monotonic() - self._last, step
    self.resume()
    if step > self._first:
      tokens = sum(int((batch[side]['segment_ids'] > 0).sum()) for side in ('src', 'tgt'))
      self._tokens, self._seconds = self._tokens + tokens, self._seconds + seconds
      share = .1 if self.recent else 1.
      self.recent += share * (tokens / seconds - self.recent)

  def due(self):
    """Whether the user has not heard for some seconds."""
    if self._last - self._reported < _REPORT_SECONDS:
      return False
    self._reported = self._last
    return True

  def left(self):
    """The time left as h:mm:ss."""
    done = self._step - self._first
    if not done:
      return '?'
    seconds = self._seconds / done * (self._max_steps - self._step)
    return time.strftime('%-H:%M:%S', time.gmtime(seconds))

  def mean(self):
    """Tokens per second since the first step, None without a second one."""
    return self._tokens / self._seconds if self._tokens else None
