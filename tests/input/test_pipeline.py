"""Tests of gshard_tf.input.pipeline."""

import dataclasses
import gc
import itertools

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_text as tf_text

from gshard_tf.input import mixing
from gshard_tf.input import packing
from gshard_tf.input import pipeline
from gshard_tf.input import tokenizer as tokenizers
from tests.input import languages
from tests.input import rows as layout
from tests.input.rows import assert_same
from tests.input.rows import read

SENTENCES = sum(languages.LINES.values())
LENGTHS = st.integers(3, 80)
FORMATS = st.builds(packing.BatchFormat, st.integers(1, 7), LENGTHS, LENGTHS,
                    st.booleans())
# Building a dataset takes a good part of a second, hence few examples of each;
# test_packing.py has the many.
few = settings(max_examples=3, deadline=None, derandomize=True)


@few
@given(batch_format=FORMATS, start=st.integers(0, SENTENCES - 1))
def test_evaluation_has_every_sentence_once_in_order(world, batch_format, start):
  batches = read(pipeline.evaluation_batches(
      world.corpus, world.models, batch_format, start=start))
  rows = layout.unpack(batches)
  assert all(rows[:1 - batch_format.batch_size or None])
  full = [row for row in rows if row]
  expected = layout.fitting(world.encoded[start:], batch_format)
  assert list(itertools.chain(*full)) == expected
  assert rows[len(full):] == [[]] * (-len(full) % batch_format.batch_size)
  layout.check_next_fit(full, batch_format)
  if expected:
    assert batches[-1]['position'] == SENTENCES
    assert (sum(batch['skipped'] for batch in batches) ==
            SENTENCES - start - len(expected))
  if not batch_format.packing:
    assert max(map(len, rows), default=0) <= 1


def test_evaluation_tells_the_language_of_every_token(world):
  batches = read(pipeline.evaluation_batches(
      world.corpus, world.models, packing.BatchFormat(7, 80, 80)))
  found = [set(codes) for batch in batches for row in range(7)
           for codes in layout.unpack_side(batch['src'], row, 'language')]
  fits = [len(s) <= 80 and len(t) <= 80 for s, t in world.encoded]
  assert found == [{code} for code, fit in zip(world.corpus.language, fits) if fit]
  assert len(set.union(*found)) > 1
  train = read(pipeline.training_batches(world.corpus, world.models,
                                         packing.BatchFormat(7, 80, 80)), 1)
  assert 'language' in batches[0]['tgt'] and 'language' not in train[0]['tgt']


def test_unpacked_rows_say_which_sentence_they_are(world):
  batch_format = packing.BatchFormat(7, 40, 40, packing=False)
  batches = read(pipeline.evaluation_batches(
      world.corpus, world.models, batch_format))
  sentences = np.concatenate([batch['sentence'] for batch in batches])
  codes = np.concatenate([batch['language'] for batch in batches])
  assert sentences.dtype == codes.dtype == np.int32
  rows = layout.unpack(batches)
  for row, sentence, code in zip(rows, sentences, codes):
    if row:
      assert row == [world.encoded[sentence]]
      assert code == world.corpus.language[sentence]
    else:
      assert sentence == code == -1
  assert [] in rows, 'the last batch was meant to have empty rows'


@settings(few, max_examples=2)
@given(batch_format=FORMATS, seed=st.integers(-2**40, 2**40),
       start=st.integers(0, 10**12))
def test_training_packs_the_stream_of_examples_in_order(
    world, batch_format, seed, start):
  stream = read(pipeline.training_batches(
      world.corpus, world.models, packing.BatchFormat(100, 80, 80, False),
      seed=seed, start=start), 6)
  assert not any(batch['skipped'] for batch in stream)
  examples = [world.encoded[i] for batch in stream for i in batch['sentence']]
  batches, position = [], start
  for batch in pipeline.training_batches(
      world.corpus, world.models, batch_format, seed=seed,
      start=start).as_numpy_iterator():
    if batch['position'] > start + len(examples):
      break
    segments = batch['src']['segment_ids'].max(axis=1).sum()
    assert batch['position'] - position == segments + batch['skipped']
    position = batch['position']
    batches.append(batch)
  rows = layout.unpack(batches)
  assert all(rows)
  assert list(itertools.chain(*rows)) == layout.fitting(
      examples[:position - start], batch_format)
  layout.check_next_fit(rows, batch_format)


@pytest.mark.parametrize('seed, batch_format, parallel_calls', [
    (0, packing.BatchFormat(5, 40, 40), 3),
    (1, packing.BatchFormat(2, 70, 50), tf.data.AUTOTUNE),
    (2**40, packing.BatchFormat(9, 40, 40, packing=False), 1),
])
def test_training_resumes_after_any_batch(
    world, seed, batch_format, parallel_calls):
  batches = read(pipeline.training_batches(
      world.corpus, world.models, batch_format, seed=seed), 100)
  positions = [int(batch['position']) for batch in batches]
  blocks = [position // pipeline.BLOCK for position in positions]
  # On both sides of the end of a block.
  for stop in (blocks.index(1) - 1, blocks.index(1)):
    resumed = read(pipeline.training_batches(
        world.corpus, world.models, batch_format, seed=seed,
        start=positions[stop], parallel_calls=parallel_calls), 99 - stop)
    assert_same(resumed, batches[stop + 1:])


def test_evaluation_resumes_after_every_batch(world):
  batch_format = packing.BatchFormat(60, 80, 80)
  batches = read(pipeline.evaluation_batches(
      world.corpus, world.models, batch_format))
  assert len(batches) > 2
  for done, batch in enumerate(batches[:-1], start=1):
    assert_same(read(pipeline.evaluation_batches(
        world.corpus, world.models, batch_format,
        start=int(batch['position']))), batches[done:])


def test_nothing_follows_the_end_of_an_evaluation(world):
  assert not read(pipeline.evaluation_batches(
      world.corpus, world.models, packing.BatchFormat(4, 40, 40),
      start=SENTENCES))


def test_another_seed_is_another_stream(world):
  first, second = (
      read(pipeline.training_batches(
          world.corpus, world.models, packing.BatchFormat(50, 80, 80, False),
          seed=seed), 1)[0]['sentence'] for seed in (1, 2))
  # Two draws agree with a probability of 1 in 60, of the smallest language.
  assert np.mean(first == second) < 0.5


@pytest.mark.parametrize('temperature', [1, 5])
def test_the_shares_of_the_stream_are_those_of_the_temperature(world, temperature):
  batch_format = packing.BatchFormat(1000, 80, 80, packing=False)
  batches = read(pipeline.training_batches(
      world.corpus, world.models, batch_format, temperature=temperature,
      seed=4), 30)
  draws = np.concatenate([batch['sentence'] for batch in batches])

  def check(counts, probabilities):
    # A count is binomial: 5 standard deviations are exceeded once in 2 million.
    deviation = np.sqrt(len(draws) * probabilities * (1 - probabilities))
    assert np.all(np.abs(counts - len(draws) * probabilities) < 5 * deviation)

  weights = mixing.language_weights(world.corpus.counts, temperature)
  check(np.bincount(world.corpus.language[draws]), weights)
  check(np.bincount(draws, minlength=SENTENCES),
        (weights / world.corpus.counts)[world.corpus.language])


def test_tensorflow_tokenises_as_python_does(world):
  texts = [*world.corpus.sources, 'ﬁ  ａ', ' x ', '🦜 日本', 'a\u200bb', '']
  for path in world.models:
    tokenizer = tokenizers.Tokenizer(path)
    ids = tf_text.SentencepieceTokenizer(tokenizer.serialized).tokenize(texts)
    assert ids.to_list() == [tokenizer.encode(text) for text in texts]


def test_a_session_reads_the_same_batches(world):
  make = lambda: pipeline.training_batches(
      world.corpus, world.models, packing.BatchFormat(8, 48, 48))
  eager = read(make(), 10)
  with tf.Graph().as_default():
    iterator = tf.compat.v1.data.make_initializable_iterator(make())
    batch = iterator.get_next()
    with tf.compat.v1.Session() as session:
      session.run(iterator.initializer)
      assert_same([session.run(batch) for _ in eager], eager)


def test_shapes_are_static(world):
  batch_format = packing.BatchFormat(3, 40, 50, packing=False)
  for make in (pipeline.training_batches, pipeline.evaluation_batches):
    spec = make(world.corpus, world.models, batch_format).element_spec
    assert {value.shape for value in spec['src'].values()} == {(3, 40)}
    assert {value.shape for value in spec['tgt'].values()} == {(3, 50)}
    assert spec['language'].shape == spec['sentence'].shape == (3,)
    assert spec['position'].shape == spec['skipped'].shape == ()
    assert spec['position'].dtype == tf.int64


def test_an_iterator_keeps_its_vocabularies_alive(world):
  iterator = iter(pipeline.training_batches(
      world.corpus, world.models, packing.BatchFormat(64, 80, 80)))
  gc.collect()
  positions = [int(next(iterator)['position']) for _ in range(5)]
  assert positions[-1] > 4 * pipeline.BLOCK


def test_a_corpus_in_which_nothing_fits_ends_with_an_error(world):
  corpus = dataclasses.replace(
      world.corpus, sources=['much too long for a row'] * SENTENCES)
  batches = pipeline.training_batches(
      corpus, world.models, packing.BatchFormat(4, 3, 40))
  with pytest.raises(tf.errors.InvalidArgumentError,
                     match='longer than source_length 3 or target_length 40'):
    read(batches, 1)
