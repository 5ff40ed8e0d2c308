"""Beam search against an exhaustive search, a Python loop and greedy search, alone, in a batch and on a mesh.

Dimensions: B sentences, K beams, V vocabulary, T positions, D features.
"""

import functools
import math
import re
from typing import NamedTuple

from hypothesis import given, settings, strategies as st
import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import jax.numpy as jnp
import numpy as np
import pytest

from gshard_tf.decode.beam_search import beam_search, length_penalties, repeat_per_beam

pytestmark = pytest.mark.slow

PAD, BOS, EOS = 0, 1, 2
FEATURES = 6


class Model(NamedTuple):
  """A decoder whose logits depend on every token of the prefix, and on its place.

  Attributes:
    context: f32[B, D], what the encoder would have made of each sentence.
    embedding: f32[V, D].
    positions: f32[T, D].
    output: f32[D, V].
    eos_bias: f32[B], how much each sentence longs to end.
  """
  context: np.ndarray
  embedding: np.ndarray
  positions: np.ndarray
  output: np.ndarray
  eos_bias: np.ndarray


def random_model(seed, batch_size, vocabulary, max_length):
  rng = np.random.default_rng(seed)
  normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  return Model(normal(batch_size, FEATURES), 2 * normal(vocabulary, FEATURES), normal(max_length, FEATURES),
               2 * normal(FEATURES, vocabulary), 2 * normal(batch_size))


def search(model, beam_size, *, cache=None, **options):
  """beam_search over the model with a cache f32[B*K, T, D] of the embedded prefix as state."""
  (batch_size, features), max_length = model.context.shape, len(model.positions)
  context, eos_bias = repeat_per_beam((model.context, model.eos_bias), beam_size)
  is_eos = jnp.arange(len(model.embedding)) == options.get('eos', EOS)
  if cache is None:
    cache = jnp.zeros((batch_size * beam_size, max_length, features))

  def step(state, ids, t):
    state = {'cache': state['cache'].at[:, t].set(jnp.asarray(model.embedding)[ids])}
    hidden = jnp.tanh(context + jnp.einsum('rtd,td->rd', state['cache'], model.positions))
    return hidden @ model.output + eos_bias[:, None] * is_eos, state

  return beam_search(
      step, {'cache': cache}, batch_size=batch_size, beam_size=beam_size, max_length=max_length, **options)


def jitted_search(model, beam_size, **options):
  """As `search`, compiled as one program."""
  result = jax.jit(functools.partial(search, beam_size=beam_size, **options))(model)
  return jax.tree.map(np.asarray, result)


def next_tokens(model, sentence, prefix, limit):
  """Allowed continuations of a prefix and their log probabilities, from the whole prefix at once."""
  inputs = model.embedding[[BOS, *prefix]].astype(np.float64)  # [t + 1, D]
  hidden = np.tanh(model.context[sentence] + (inputs * model.positions[:len(inputs)]).sum(axis=0))
  logits = hidden @ model.output
  logits[EOS] += model.eos_bias[sentence]
  log_probs = logits - np.log(np.exp(logits).sum())
  is_last = len(prefix) + 1 == limit
  return [(token, log_probs[token]) for token in range(len(logits))
          if token == EOS or (token not in (PAD, BOS) and not is_last)]


def normalised(log_prob, length, exponent):
  return log_prob / ((5 + length) / 6) ** exponent


def all_hypotheses(model, sentence, limit, exponent):
  """Every complete hypothesis as (score, tokens), best first."""
  found, open_prefixes = [], [((), 0.0)]
  while open_prefixes:
    prefix, total = open_prefixes.pop()
    for token, log_prob in next_tokens(model, sentence, prefix, limit):
      tokens = (*prefix, token)
      if token == EOS:
        found.append((normalised(total + log_prob, len(tokens), exponent), tokens))
      else:
        open_prefixes.append((tokens, total + log_prob))
  return sorted(found, reverse=True)


def loop_search(model, sentence, beam_size, limit, exponent):
  """The rules of beam_search for one sentence, with lists: (score, tokens), best first."""
  alive, finished = [(0.0, ())], []
  while alive and not (len(finished) == beam_size
                       and normalised(alive[0][0], limit, exponent) <= finished[-1][0]):
    candidates = [(total + log_prob, (*prefix, token)) for total, prefix in alive
                  for token, log_prob in next_tokens(model, sentence, prefix, limit)]
    candidates = sorted(candidates, reverse=True)[:2 * beam_size if beam_size > 1 else 1]
    ended = [(normalised(total, len(tokens), exponent), tokens)
             for total, tokens in candidates if tokens[-1] == EOS]
    finished = sorted(finished + ended, reverse=True)[:beam_size]
    alive = [candidate for candidate in candidates if candidate[1][-1] != EOS][:beam_size]
  return finished


def greedy_search(model, sentence, limit, exponent):
  tokens, total = (), 0.0
  while EOS not in tokens:
    token, log_prob = max(next_tokens(model, sentence, tokens, limit), key=lambda pair: pair[1])
    tokens, total = (*tokens, token), total + log_prob
  return [(normalised(total, len(tokens), exponent), tokens)]


def assert_finds(result, sentence, expected):
  """The K hypotheses of a sentence are the expected (score, tokens), then empty ones."""
  beam_size, max_length = result.ids.shape[1:]
  filled = expected + [(-math.inf, ())] * (beam_size - len(expected))
  rows = [[*tokens, *[PAD] * (max_length - len(tokens))] for _, tokens in filled]
  np.testing.assert_array_equal(result.ids[sentence], rows)
  np.testing.assert_array_equal(result.lengths[sentence], [len(tokens) for _, tokens in filled])
  np.testing.assert_allclose(result.scores[sentence], [score for score, _ in filled], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('exponent', [0.0, 0.6, 2.0])
def test_a_wide_beam_finds_the_best_of_all_hypotheses(exponent):
  max_length, beam_size = 5, 16  # 2 words: no more than 2 ** 4 open prefixes, so nothing is pruned
  model = random_model(seed=1, batch_size=3, vocabulary=5, max_length=max_length)
  result = jitted_search(model, beam_size, length_exponent=exponent)
  for sentence in range(3):
    expected = all_hypotheses(model, sentence, max_length, exponent)
    assert len(expected) == 31
    assert_finds(result, sentence, expected[:beam_size])


@settings(max_examples=10, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_equals_a_python_loop(data):
  draw = lambda low, high: data.draw(st.integers(low, high))
  batch_size, beam_size, max_length = draw(1, 3), draw(1, 5), draw(1, 8)
  exponent = data.draw(st.sampled_from([0.0, 0.6, 1.0]))
  limits = [draw(1, max_length) for _ in range(batch_size)]
  model = random_model(draw(0, 1000), batch_size, vocabulary=draw(4, 9), max_length=max_length)
  result = jitted_search(model, beam_size, length_exponent=exponent, max_lengths=jnp.array(limits, jnp.int32))
  for sentence, limit in enumerate(limits):
    assert_finds(result, sentence, loop_search(model, sentence, beam_size, limit, exponent))


def test_one_beam_is_greedy_search():
  model = random_model(seed=3, batch_size=16, vocabulary=12, max_length=10)
  result = jitted_search(model, 1)
  assert len(set(result.lengths[:, 0])) > 3  # sentences end at different steps, some by force
  for sentence in range(16):
    assert_finds(result, sentence, greedy_search(model, sentence, 10, 0.6))


def test_max_lengths_are_kept_and_clipped():
  model = random_model(seed=4, batch_size=4, vocabulary=8, max_length=6)
  model = model._replace(eos_bias=np.full(4, -20, np.float32))  # none ends unless it must
  result = jitted_search(model, 3, max_lengths=jnp.array([0, 1, 4, 99]))
  np.testing.assert_array_equal(result.lengths[:2], [[1, 0, 0]] * 2)
  np.testing.assert_array_equal(result.lengths.max(axis=1), [1, 1, 4, 6])
  assert (result.ids[2, :, 4:] == PAD).all()


@pytest.mark.parametrize('special', [dict(bos=1, eos=2, pad=0), dict(bos=0, eos=1, pad=0), dict(bos=3, eos=3, pad=0)])
def test_a_hypothesis_ends_with_its_only_eos_and_holds_neither_bos_nor_pad(special):
  model = random_model(seed=5, batch_size=4, vocabulary=7, max_length=7)
  model.output[:, [special['bos'], special['pad']]] *= 5  # tempting
  result = jitted_search(model, 4, **special)
  for tokens, length in zip(result.ids.reshape(-1, 7), result.lengths.reshape(-1)):
    assert tokens[length - 1] == special['eos'] and all(tokens[length:] == special['pad'])
    assert not {special['bos'], special['eos'], special['pad']} & set(tokens[:length - 1].tolist())
  assert (np.diff(result.scores) <= 0).all()
  assert (result.lengths < 7).any()


def test_stops_once_no_beam_can_improve():
  steps = []
  def step(state, ids, t):
    jax.debug.callback(lambda position: steps.append(int(position)), t)
    return jnp.tile(jnp.where(jnp.arange(6) == EOS, 20.0, 0.0), (len(ids), 1)), state
  result = jax.jit(lambda: beam_search(
      step, (), batch_size=3, beam_size=2, max_length=50, length_exponent=0.0))()
  jax.block_until_ready(result)
  jax.effects_barrier()
  # The first hypothesis ends at once, the second a step later; each word costs 20, so no third is as good.
  assert sorted(steps) == [0, 1]
  np.testing.assert_array_equal(result.lengths, [[1, 2]] * 3)


def test_goes_on_while_a_longer_hypothesis_may_overtake():
  # Columns pad, bos, eos and two words: two hypotheses end early, two others cost nothing more until they end.
  table = np.full((20, 5), 1e-9)
  table[0, 2:] = 0.5, 0.3, 0.2
  table[1, 2:] = 0.5, 0.49, 0.01
  table[2:-1, 3] = table[-1, 2] = 1
  logits = jnp.log(table)
  result = beam_search(lambda state, ids, t: (jnp.tile(logits[t], (len(ids), 1)), state), (),
                       batch_size=1, beam_size=2, max_length=20, length_exponent=1.0)
  np.testing.assert_array_equal(result.ids[0], [[3] * 19 + [EOS], [4] + [3] * 18 + [EOS]])
  np.testing.assert_allclose(result.scores[0], np.log([0.3 * 0.49, 0.2 * 0.49]) / (25 / 6), rtol=1e-5)


def test_a_sentence_does_not_depend_on_its_batch():
  model = random_model(seed=6, batch_size=6, vocabulary=10, max_length=12)
  model = model._replace(eos_bias=np.array([9, 0, -9, 3, -3, 1], np.float32))  # some end soon, some by force
  limits = jnp.array([12, 12, 12, 4, 9, 12])
  together = jitted_search(model, 3, max_lengths=limits)
  alone = jax.jit(lambda model, limit: search(model, 3, max_lengths=limit))
  for sentence in range(6):
    one = slice(sentence, sentence + 1)
    result = alone(model._replace(context=model.context[one], eos_bias=model.eos_bias[one]), limits[one])
    np.testing.assert_array_equal(result.ids[0], together.ids[sentence])
    np.testing.assert_array_equal(result.lengths[0], together.lengths[sentence])
    np.testing.assert_allclose(result.scores[0], together.scores[sentence], rtol=1e-5)


def make_mesh(**axes):
  return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


@pytest.mark.parametrize('axes', [{'data': 8}, {'data': 4, 'model': 2}], ids=str)
def test_a_batch_on_a_mesh_is_searched_without_communication(axes):
  batch_size, beam_size, max_length = 16, 4, 9
  model = random_model(seed=7, batch_size=batch_size, vocabulary=30, max_length=max_length)
  cache = np.zeros((batch_size * beam_size, max_length, FEATURES), np.float32)
  mesh = make_mesh(**axes)
  rows, whole = NamedSharding(mesh, PartitionSpec('data')), NamedSharding(mesh, PartitionSpec())
  shardings = Model(context=rows, embedding=whole, positions=whole, output=whole, eos_bias=rows)

  sharded = jax.jit(lambda model, cache: search(model, beam_size, cache=cache, sharding=rows),
                    in_shardings=(shardings, rows)).lower(model, cache).compile()
  collectives = re.findall(
      r'= (\S+) (all-gather|all-to-all|all-reduce|reduce-scatter|collective-permute)(?:-start)?\(',
      sharded.as_text())
  assert collectives == [('pred[]', 'all-reduce')]  # whether any sentence can still improve

  result = sharded(jax.device_put(model, shardings), jax.device_put(cache, rows))
  expected = jitted_search(model, beam_size)
  assert result.ids.sharding.is_equivalent_to(rows, 3)
  np.testing.assert_array_equal(result.ids, expected.ids)
  np.testing.assert_array_equal(result.lengths, expected.lengths)
  np.testing.assert_allclose(result.scores, expected.scores, rtol=1e-5)


def test_length_penalties_are_those_of_the_paper():
  np.testing.assert_allclose(length_penalties(7, 0.5), [math.sqrt((5 + n) / 6) for n in range(8)], rtol=1e-6)


@pytest.mark.parametrize('options, message', [
    (dict(beam_size=0), 'beam_size is 0, below 1'),
    (dict(max_length=0), 'max_length is 0, below 1'),
    (dict(length_exponent=-1.0), 'length_exponent is -1.0, below 0'),
    (dict(state={'key': jnp.zeros((5, 2))}), r"state\['key'\] has shape \[5, 2\], but batch_size 3 x beam_size 2 "),
    (dict(step=lambda state, ids, t: (jnp.zeros((3, 8)), state)), r'logits of shape \[3, 8\], not \[3 x 2'),
])
def test_wrong_arguments_are_named(options, message):
  arguments = dict(step=lambda state, ids, t: (jnp.zeros((6, 8)), state), state=(), batch_size=3, beam_size=2,
                   max_length=4)
  with pytest.raises(ValueError, match=message):
    beam_search(**(arguments | options))


def test_a_batch_that_does_not_split_over_the_mesh_is_refused():
  rows = NamedSharding(make_mesh(data=4, model=2), PartitionSpec('data'))
  with pytest.raises(ValueError, match='batch_size 6 does not split into 4 shards'):
    search(random_model(seed=8, batch_size=6, vocabulary=8, max_length=4), 2, sharding=rows)


def test_a_mesh_of_explicit_axes_is_refused():
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Explicit,))
  with pytest.raises(ValueError, match='make the mesh with AxisType.Auto'):
    search(random_model(seed=8, batch_size=8, vocabulary=8, max_length=4), 2,
           sharding=NamedSharding(mesh, PartitionSpec('data')))
