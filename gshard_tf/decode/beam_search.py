"""Beam search as one jittable program around any incremental decoder.

The search knows nothing of the model: it calls `step` for the logits of the next token and carries the
model's state (key/value caches) along, each row following the hypothesis it belongs to. Every operation is
local to a sentence except the test for the end of the loop: told the sharding of its batch, it searches over a
mesh with no communication beyond one scalar a step.

Dimensions:
  B: sentences of a batch
  K: beams of a sentence
  C: candidates of a step, the best continuations of the K beams
  V: vocabulary
  T: positions, the tokens of the longest hypothesis with its eos
"""

from typing import Any, Callable, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np

# (array [B, N], k) -> (values [B, k], indices int32[B, k]), the greatest first, the earlier of equal ones first.
TopK = Callable[[jax.Array, int], tuple[jax.Array, jax.Array]]


class BeamResult(NamedTuple):
  """Complete hypotheses of each sentence, best first.

  A sentence with fewer than K possible hypotheses has its last ones empty: score -inf, length 0, ids all pad.

  Attributes:
    ids: int32[B, K, T], without bos, with eos, then pad.
    scores: f32[B, K], log probability over length penalty.
    lengths: int32[B, K], tokens of the hypothesis, eos included.
  """
  ids: jax.Array
  scores: jax.Array
  lengths: jax.Array


class _Alive(NamedTuple):
  """Hypotheses without eos, best first: ids int32[B, K, T], log_probs f32[B, K], last_ids int32[B, K]."""
  ids: jax.Array
  log_probs: jax.Array
  last_ids: jax.Array


class _Candidates(NamedTuple):
  """Continuations, best first: log_probs f32[B, C], parents int32[B, C] (beams), tokens int32[B, C]."""
  log_probs: jax.Array
  parents: jax.Array
  tokens: jax.Array


class _Loop(NamedTuple):
  """What one step hands to the next: t int32 scalar, hypotheses, and the model's state."""
  t: jax.Array
  alive: _Alive
  finished: BeamResult
  state: Any


def length_penalties(max_length: int, exponent: float) -> np.ndarray:
  """((5 + length) / 6) ** exponent for lengths 0..max_length (Wu et al. 2016, 1609.08144, eq. 14).

  Args:
    max_length: the greatest length, T.
    exponent: alpha of the paper; 0 leaves scores as log probabilities.

  Returns:
    f32[T + 1], indexed by length.
  """
  return (((5.0 + np.arange(max_length + 1)) / 6.0) ** exponent).astype(np.float32)


def repeat_per_beam(tree: Any, beam_size: int) -> Any:
  """Repeats every row of every leaf for the beams of its sentence.

  Args:
    tree: a pytree of [B, ...].
    beam_size: K.

  Returns:
    The pytree of [B*K, ...]; rows b*K to b*K + K - 1 are row b.
  """
  return jax.tree.map(lambda leaf: jnp.repeat(leaf, beam_size, axis=0), tree)


def beam_search(
    step: Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, Any]],
    state: Any,
    *,
    batch_size: int,
    beam_size: int,
    max_length: int,
    max_lengths: jax.Array | None = None,
    bos: int = 1,
    eos: int = 2,
    pad: int = 0,
    length_exponent: float = 0.6,
    sharding: NamedSharding | None = None,
) -> BeamResult:
  """Finds the hypotheses of greatest length-normalised log probability.

  Each step takes the 2K best continuations of the K beams: those with eos compete for the K finished places
  by score, the best K others stay alive. One beam takes one continuation, and is greedy search. The search
  of a sentence is over when no alive beam can still beat its worst finished hypothesis. Neither bos nor pad
  is ever generated, and the last position allows eos alone, so every hypothesis is complete.

  Args:
    step: (state, ids int32[B*K], t int32 scalar) -> (logits [B*K, V], state): consumes the token of position
      t (bos at 0) and predicts the next. Row b*K + k is beam k of sentence b.
    state: a pytree of [B*K, ...], for instance key/value caches; `step` must keep shapes and dtypes. What
      does not differ between the beams of a sentence (see repeat_per_beam) is better closed over by `step`,
      since the state is reordered at every step.
    batch_size: B.
    beam_size: K.
    max_length: T, counted with eos.
    max_lengths: int32[B], a limit for each sentence, counted with eos and clipped to 1..T; None for T.
    bos: id that starts a sentence.
    eos: id that ends a sentence.
    pad: id that fills positions after eos.
    length_exponent: alpha of the length penalty, see length_penalties.
    sharding: how the rows of state and batch are split over a mesh of Auto axes, its first dimension; None for one
      device.

  Returns:
    BeamResult of [B, K, T].

  Raises:
    ValueError: if a size is below 1, the exponent is negative, state or logits are not of B*K rows, or the
      batch does not split over a mesh of Auto axes.
  """
  _check_arguments(state, batch_size, beam_size, max_length, length_exponent)
  top_k = _batch_local_top_k(batch_size, sharding)
  penalties = jnp.asarray(length_penalties(max_length, length_exponent))  # [T + 1]
  if max_lengths is None:
    max_lengths = jnp.full((batch_size,), max_length, jnp.int32)
  limits = jnp.clip(max_lengths, 1, max_length)  # [B]

  def can_improve(loop: _Loop) -> jax.Array:
    # Log probabilities are at most 0 and only fall, so the greatest penalty, that of the greatest length,
    # bounds every score an alive beam can reach.
    attainable = loop.alive.log_probs[:, 0] / penalties[limits]  # [B]
    return (loop.t < max_length) & jnp.any(attainable > loop.finished.scores[:, -1])

  def advance(loop: _Loop) -> _Loop:
    logits, state = step(loop.state, loop.alive.last_ids.reshape(-1), loop.t)
    log_probs = _log_probs(logits, loop.alive)  # [B, K, V]
    allowed = _allowed_tokens(logits.shape[-1], loop.t + 1 >= limits, bos, eos, pad)  # [B, V]
    candidates = _best_continuations(loop.alive, jnp.where(allowed[:, None], log_probs, -jnp.inf), top_k)
    ids = _take_beams(loop.alive.ids, candidates.parents)  # [B, C, T]
    ids = jnp.where(jnp.arange(max_length) == loop.t, candidates.tokens[:, :, None], ids)
    length = loop.t + 1
    ended = candidates.tokens == eos  # [B, C]
    scores = jnp.where(ended, candidates.log_probs / penalties[length], -jnp.inf)
    finished = _keep_best(loop.finished, ids, scores, length, top_k)

    log_probs, order = top_k(jnp.where(ended, -jnp.inf, candidates.log_probs), beam_size)  # [B, K]
    ids, last_ids, parents = jax.tree.map(
        lambda leaf: _take_beams(leaf, order), (ids, candidates.tokens, candidates.parents))
    return _Loop(length, _Alive(ids, log_probs, last_ids), finished, _follow_parents(state, parents))

  start = _start(batch_size, beam_size, max_length, bos, pad, state)
  return lax.while_loop(can_improve, advance, start).finished


def _check_arguments(state, batch_size, beam_size, max_length, length_exponent):
  for name, size in (('batch_size', batch_size), ('beam_size', beam_size), ('max_length', max_length)):
    if size < 1:
      raise ValueError(f'{name} is {size}, below 1; set it to at least 1')
  if length_exponent < 0:
    raise ValueError(f'length_exponent is {length_exponent}, below 0; set it to 0 for no length normalisation')
  rows = batch_size * beam_size
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    if jnp.ndim(leaf) < 1 or leaf.shape[0] != rows:
      raise ValueError(
          f'state{jax.tree_util.keystr(path)} has shape {list(jnp.shape(leaf))}, but batch_size {batch_size} x '
          f'beam_size {beam_size} needs {rows} rows; apply repeat_per_beam, or close over constants in step')


def _batch_local_top_k(batch_size: int, sharding: NamedSharding | None) -> TopK:
  """lax.top_k, on each shard of the batch by itself; left to the partitioner, XLA gathers its whole operand."""
  if sharding is None:
    return lax.top_k
  mesh, rows = sharding.mesh, PartitionSpec(*sharding.spec[:1])
  shards = mesh.size // NamedSharding(mesh, rows).shard_shape((mesh.size,))[0]
  if any(axis_type != AxisType.Auto for axis_type in mesh.axis_types):
    raise ValueError(f'the mesh has axes {mesh.axis_types}, but the search leaves its layout to the partitioner; '
                     'make the mesh with AxisType.Auto')
  if batch_size % shards:
    raise ValueError(
        f'batch_size {batch_size} does not split into {shards} shards; pad the batch to a multiple of {shards}')
  return lambda array, k: jax.shard_map(
      lambda shard: tuple(lax.top_k(shard, k)), mesh=mesh, in_specs=rows, out_specs=rows)(array)


def _start(batch_size, beam_size, max_length, bos, pad, state) -> _Loop:
  """One alive beam that holds bos; the others are impossible until it has continuations."""
  beams = (batch_size, beam_size)
  padding = jnp.full((*beams, max_length), pad, jnp.int32)  # [B, K, T]
  impossible = jnp.full(beams, -jnp.inf, jnp.float32)  # [B, K]
  alive = _Alive(padding, impossible.at[:, 0].set(0.0), jnp.full(beams, bos, jnp.int32))
  finished = BeamResult(padding, impossible, jnp.zeros(beams, jnp.int32))
  return _Loop(jnp.int32(0), alive, finished, state)


def _log_probs(logits: jax.Array, alive: _Alive) -> jax.Array:
  """Logits [B*K, V] -> log probabilities f32[B, K, V] of the next token."""
  batch_size, beam_size = alive.log_probs.shape
  if logits.ndim != 2 or logits.shape[0] != batch_size * beam_size:
    raise ValueError(
        f'step returned logits of shape {list(logits.shape)}, not [{batch_size} x {beam_size}, vocabulary]; '
        'return one row for each beam')
  return jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(batch_size, beam_size, -1)


def _allowed_tokens(vocabulary: int, is_last: jax.Array, bos: int, eos: int, pad: int) -> jax.Array:
  """Which tokens may come next, given is_last bool[B]: bool[B, V]."""
  tokens = jnp.arange(vocabulary)
  # A model may start from eos or pad instead of a token of its own, so eos is asked first.
  is_eos = tokens == eos
  usual = is_eos | ((tokens != bos) & (tokens != pad))
  return jnp.where(is_last[:, None], is_eos, usual)


def _best_continuations(alive: _Alive, log_probs: jax.Array, top_k: TopK) -> _Candidates:
  """The C best of all continuations of the alive beams by log_probs f32[B, K, V]."""
  batch_size, beam_size, vocabulary = log_probs.shape
  # At most K of 2K end, one for each beam, so K stay alive. A single beam must not outlive its own eos.
  count = 2 * beam_size if beam_size > 1 else 1
  totals = (alive.log_probs[:, :, None] + log_probs).reshape(batch_size, -1)  # [B, K*V]
  log_probs, index = top_k(totals, count)  # [B, C]
  return _Candidates(log_probs, index // vocabulary, index % vocabulary)


def _keep_best(
    finished: BeamResult, ids: jax.Array, scores: jax.Array, length: jax.Array, top_k: TopK) -> BeamResult:
  """The K best of the finished hypotheses and of ids [B, C, T] with scores f32[B, C], all of one length."""
  # Of equal scores top_k prefers the first: what is finished stays, and -inf never enters.
  lengths = jnp.broadcast_to(length, scores.shape)  # [B, C]
  pool = jax.tree.map(
      lambda old, new: jnp.concatenate([old, new], axis=1), finished, BeamResult(ids, scores, lengths))
  _, order = top_k(pool.scores, finished.scores.shape[1])  # [B, K]
  return jax.tree.map(lambda leaf: _take_beams(leaf, order), pool)


def _take_beams(array: jax.Array, beams: jax.Array) -> jax.Array:
  """array [B, K, ...] at beams int32[B, N] -> [B, N, ...]; a gather within each sentence."""
  index = beams.reshape(beams.shape + (1,) * (array.ndim - 2))
  return jnp.take_along_axis(array, index, axis=1, mode='promise_in_bounds')


def _follow_parents(state: Any, parents: jax.Array) -> Any:
  """Moves each row of the state [B*K, ...] to the beams that continue it, by parents int32[B, K]."""
  def follow(leaf):
    beams = leaf.reshape(*parents.shape, *leaf.shape[1:])  # [B, K, ...]
    return _take_beams(beams, parents).reshape(leaf.shape)
  return jax.tree.map(follow, state)
