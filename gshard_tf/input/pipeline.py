"""Batches of packed rows, as a `tf.data.Dataset`.

  corpus = read_corpus('data/train.tsv')
  models = ('data/vocabulary/source.model', 'data/vocabulary/target.model')
  batch_format = packing.BatchFormat(
      batch_size=8, source_length=128, target_length=128)
  for batch in training_batches(corpus, models, batch_format, seed=1):
    ...

A dataset is a sequence of examples 0, 1, 2, ...: in training example i is drawn
from (seed, i) alone, in evaluation it is sentence i of the file. Examples go
into rows in this order, by next fit: one that does not fit either side of the
row in progress ends it and begins the next row. A row therefore depends on
where it begins and on nothing earlier, and a batch says in `position` which
example begins the batch after it: `start=position` continues exactly there.

Dimension letters: B rows of a batch, L tokens of a row (source_length or
target_length), N examples of a block.
"""

import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text

from gshard_tf.input import mixing
from gshard_tf.input import packing
from gshard_tf.input import tokenizer as tokenizers

# Examples tokenised and packed at a time. Part of what (seed, i) means: another
# value is another stream.
BLOCK = 256


def training_batches(corpus, models, batch_format, *, temperature=5.0, seed=0,
                     start=0, parallel_calls=tf.data.AUTOTUNE):
  """An endless stream of batches, a pure function of the seed and the start.

  Args:
    corpus: a `corpus.Corpus`.
    models: paths of the source and of the target vocabulary.
    batch_format: a `packing.BatchFormat`.
    temperature: of the languages' shares, see `mixing`.
    seed: an integer; another one is another stream.
    start: the example to begin with, 0 or the `position` of a batch.
    parallel_calls: blocks tokenised at once; it does not change the batches.

  Returns:
    A `tf.data.Dataset` of batches, dicts of fixed shapes:
      src.ids: <int32>[B, L], tokens, an eos after each sentence, 0 as padding.
      src.segment_ids: <int32>[B, L], number of the sentence in its row from 1
        on, 0 for padding.
      src.segment_pos: <int32>[B, L], position in the sentence, from 0 on.
      tgt.ids: <int32>[B, L], the decoder's input: a bos before each sentence.
      tgt.labels: <int32>[B, L], what it predicts: an eos after each sentence.
      tgt.segment_ids, tgt.segment_pos: as those of the source.
      position: <int64>[], the example that begins the next batch.
      skipped: <int32>[], examples before `position` and after the previous
        batch that were left out, too long for a row.
      language, sentence: <int32>[B], without packing only: index of the row's
        language in `corpus.languages` and of its pair in the corpus, -1 on the
        empty rows at the end of an evaluation.

  Raises:
    ValueError: a bad temperature, or a vocabulary that cannot be used.
  """
  draw = _draw(corpus, temperature, seed)

  def sample(block):
    first = tf.maximum(block * BLOCK, start)
    return first, draw(block)[first - block * BLOCK:], tf.constant(False)

  blocks = tf.data.Dataset.counter(np.int64(start // BLOCK), dtype=tf.int64)
  rows = _rows(blocks, sample, corpus, models, batch_format, start,
               parallel_calls)
  return _batches(rows, batch_format)


def evaluation_batches(corpus, models, batch_format, *, start=0,
                       parallel_calls=tf.data.AUTOTUNE):
  """One pass over the corpus in its order.

  Args:
    corpus: a `corpus.Corpus`.
    models: paths of the source and of the target vocabulary.
    batch_format: a `packing.BatchFormat`.
    start: the pair to begin with, 0 or the `position` of a batch.
    parallel_calls: blocks tokenised at once; it does not change the batches.

  Returns:
    A finite `tf.data.Dataset` of the batches of `training_batches`; the last is
    filled up with empty rows. Besides, src.language and tgt.language <int32>[B, L]
    are indices in `corpus.languages` of the tokens' sentences, 0 for padding.

  Raises:
    ValueError: a vocabulary that cannot be used.
  """
  size = len(corpus)

  def read(block):
    first = tf.maximum(block * BLOCK, start)
    end = tf.minimum((block + 1) * BLOCK, size)
    return first, tf.cast(tf.range(first, end), tf.int32), end >= size

  blocks = tf.data.Dataset.range(start // BLOCK, -(-size // BLOCK))
  rows = _rows(blocks, read, corpus, models, batch_format, start,
               parallel_calls, languages=True)
  filler = tf.nest.map_structure(
      lambda spec: tf.zeros([batch_format.batch_size - 1, *spec.shape[1:]],
                            spec.dtype), rows.element_spec)
  filler['position'] += size
  if not batch_format.packing:
    filler['language'] -= 1
    filler['sentence'] -= 1
  # After B - 1 empty rows, whole batches are just enough for the rows there are.
  rows = rows.concatenate(tf.data.Dataset.from_tensors(filler))
  return _batches(rows, batch_format)


def _draw(corpus, temperature, seed):
  """Makes the function that draws the pairs of a block of examples."""
  counts = corpus.counts  # [languages]
  by_language = np.argsort(corpus.language, kind='stable').astype(np.int32)
  first = np.cumsum(counts) - counts  # Of each language, in by_language.
  bounds = np.cumsum(mixing.language_weights(counts, temperature))[:-1]

  def draw(block):
    uniform = tf.random.stateless_uniform(
        [2, BLOCK], seed=tf.stack([tf.constant(seed, tf.int64), block]),
        dtype=tf.float64, alg='philox')
    language = tf.searchsorted(bounds, uniform[0], side='right')  # [BLOCK]
    count = tf.gather(counts, language)
    offset = tf.cast(uniform[1] * tf.cast(count, tf.float64), tf.int64)
    return tf.gather(by_language, tf.gather(first, language) + offset)

  return draw


def _rows(blocks, read, corpus, models, batch_format, start, parallel_calls, languages=False):
  """Reads, tokenises and packs.

  Args:
    blocks: a dataset of <int64>[], numbers of blocks.
    read: from such a number to <int64>[], the first example to read; <int32>[N],
      the pairs of the corpus from there to the end of the block; and <bool>[],
      whether no more follow.
    corpus: a `corpus.Corpus`.
    models: paths of the source and of the target vocabulary.
    batch_format: a `packing.BatchFormat`.
    start: the first example.
    parallel_calls: blocks tokenised at once.
    languages: whether to tell the language of each token's sentence.

  Returns:
    A dataset of dicts like a batch, with R rows instead of B, R from 0 on, and
    `position` and `skipped` for each row.
  """
  source, target = (
      tf_text.SentencepieceTokenizer(
          model=tokenizers.Tokenizer(path).serialized, add_eos=True)
      for path in models)
  sources, targets = tf.constant(corpus.sources), tf.constant(corpus.targets)
  language = tf.constant(corpus.language)

  def tokenise(block):
    first, sentence, last = read(block)
    end = first + tf.size(sentence, tf.int64)
    src = source.tokenize(tf.gather(sources, sentence))
    tgt = target.tokenize(tf.gather(targets, sentence))
    fits = ((src.row_lengths() <= batch_format.source_length) &
            (tgt.row_lengths() <= batch_format.target_length))  # [N]
    src = tf.ragged.boolean_mask(src, fits)
    tgt = tf.ragged.boolean_mask(tgt, fits)
    sentences = dict(
        index=tf.boolean_mask(tf.range(first, end), fits),
        sentence=tf.boolean_mask(sentence, fits),
        src=src.flat_values, src_lengths=src.row_lengths(),
        tgt=tgt.flat_values, tgt_lengths=tgt.row_lengths())
    return sentences, end, last

  def pack(state, element):
    state, rows = packing.pack(state, *element, batch_format)
    for side in (rows['src'], rows['tgt']):
      sentence = side.pop('sentence')
      if languages:
        side['language'] = tf.where(side['segment_ids'] > 0, tf.gather(language, sentence), 0)
    rows['tgt'] = _teacher_forcing(rows['tgt'])
    if not batch_format.packing:
      rows['language'] = tf.gather(language, rows['sentence'])
    return state, rows

  return blocks.map(
      tokenise, num_parallel_calls=parallel_calls, deterministic=True,
  ).scan(packing.empty_state(start), pack)


def _batches(rows, batch_format):
  """Regroups a dataset of R rows an element into one of batches."""

  def finish(batch):
    return dict(batch, position=batch['position'][-1],
                skipped=tf.reduce_sum(batch['skipped']))

  # Rebatching slices the rows without a trip of each one through the dataset.
  return rows.rebatch(batch_format.batch_size, drop_remainder=True).map(
      finish).prefetch(2)


def _teacher_forcing(side):
  """Turns the tokens of the target into labels and the decoder's input."""
  labels = side['ids']  # [R, L]
  # Not `==`, which compares identities where a session's graph is built.
  first = tf.equal(side['segment_pos'], 0)
  shifted = tf.where(first, tokenizers.BOS, tf.roll(labels, 1, axis=1))
  ids = tf.where(side['segment_ids'] > 0, shifted, tokenizers.PAD)
  return dict(side, ids=ids, labels=labels)
