"""Text to text: tokenise, encode, search with a cache, detokenise.

Dimensions: R rows of a decoding step, K beams, B = R/K sentences, T source
positions, L target positions.
"""

from typing import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gshard_tf.decode import beam_search
from gshard_tf.input import tokenizer as tokenizers
from gshard_tf.runtime import mesh as mesh_lib
from gshard_tf.runtime import program as program_lib


class BeamError(ValueError):
  """A beam that does not fit the rows of a decoding step."""


class Translator:
  """Translates sentences with the weights of a program."""

  def __init__(self, program: program_lib.Program, beam_size: int):
    """Prepares the search; it is compiled at the first call.

    Args:
      program: the compiled model.
      beam_size: K.

    Raises:
      BeamError: K does not divide R, or the mesh not R/K.
    """
    artifact = program.artifact
    rows = artifact.decode_rows
    parts = int(np.prod([program.mesh.shape[a] for a in artifact.batch_axes]))
    if beam_size < 1 or rows % (beam_size * parts):
      raise BeamError(
          f'--beam={beam_size}: the {rows} rows of a decoding step do not split into '
          f'{beam_size} beams on {parts} devices; choose a divisor of {rows // parts}')
    self._program, self._beam_size, self._rows = program, beam_size, rows
    self._source = tokenizers.Tokenizer(artifact.vocabularies['source'])
    self._target = tokenizers.Tokenizer(artifact.vocabularies['target'])
    self._source_length = artifact.batch['src']['ids'][1]
    self._target_length = artifact.batch['tgt']['ids'][1]
    rows_sharding = mesh_lib.sharding(program.mesh, (artifact.batch_axes,))
    self._search = jax.jit(
        self._search_rows, out_shardings=mesh_lib.sharding(program.mesh, ()),
        in_shardings=(program.state_shardings['theta'], rows_sharding))
    self._rows_sharding = rows_sharding

  def __call__(self, theta, sentences: Sequence[str],
               progress: Callable[[int], None] = lambda done: None) -> tuple[list[str], int]:
    """Translates sentences.

    Args:
      theta: a dict from path to weight, on the devices.
      sentences: plain text.
      progress: takes the number of sentences done so far.

    Returns:
      The translations in the same order, and how many sentences were cut to the
      length that the model reads.
    """
    encoded = [self._source.encode(s) for s in sentences]
    limit = self._source_length - 1
    tokens = [ids[:limit] + [tokenizers.EOS] for ids in encoded]
    # Sentences of like length together, since a batch searches as long as its
    # longest sentence needs.
    order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
    translations = [''] * len(tokens)
    for start in range(0, len(order), self._rows):
      chosen = order[start:start + self._rows]
      ids = np.zeros((self._rows, self._source_length), np.int32)  # [R, T]
      for row, i in enumerate(chosen):
        ids[row, :len(tokens[i])] = tokens[i]
      best = np.asarray(self._search(theta, jax.device_put(ids, self._rows_sharding)))
      for row, i in enumerate(chosen):
        translations[i] = self._target.decode(best[row].tolist())
      progress(min(start + self._rows, len(order)))
    return translations, sum(len(ids) > limit for ids in encoded)

  def _search_rows(self, theta, ids):
    """Encodes R sentences at once, and searches B of them at a time.

    Args:
      theta: weights.
      ids: int32 [R, T].

    Returns:
      int32 [R, L], the best hypothesis of each.
    """
    program, beams = self._program, self._beam_size
    encode, decode = program.function('encode'), program.function('decode')
    source = encode.call(theta, ids)
    # Every K-th row, so that each device searches for sentences of its own.
    turns = lambda x: x.reshape(-1, beams, *x.shape[1:])  # [R, ...] -> [B, K, ...]
    spread = jax.tree.map(turns, source)
    lengths = turns(3 * jnp.sum(ids > 0, 1) + 8)  # [B, K]
    _, caches = jax.tree.unflatten(decode.out_tree, decode.out_avals)
    caches = jax.tree.map(
        lambda a: jax.lax.with_sharding_constraint(jnp.zeros(a.shape, a.dtype), self._rows_sharding),
        caches)

    def search(turn):
      mine = jax.tree.map(lambda x: x[:, turn], spread)  # [B, ...]
      mine = beam_search.repeat_per_beam(mine, beams)  # [R, ...]
      return beam_search.beam_search(
          lambda state, tokens, t: decode.call(theta, mine, state, tokens, t), caches,
          batch_size=self._rows // beams, beam_size=beams, max_length=self._target_length,
          max_lengths=jnp.minimum(lengths[:, turn], self._target_length),
          bos=tokenizers.BOS, eos=tokenizers.EOS, pad=tokenizers.PAD,
          sharding=self._rows_sharding).ids[:, 0]

    best = jax.lax.map(search, jnp.arange(beams))  # [K, B, L]
    return best.transpose(1, 0, 2).reshape(self._rows, -1)
