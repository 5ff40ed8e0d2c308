"""Reads batches and checks, in plain Python, how their rows are laid out."""

import itertools

import numpy as np
import tensorflow as tf

from gshard_tf.input import tokenizer as tokenizers


def read(dataset, count=None):
  """Returns the first batches of a dataset, or all, as NumPy arrays."""
  return list(itertools.islice(dataset.as_numpy_iterator(), count))


def assert_same(batches, others):
  assert len(batches) == len(others) > 0
  for batch, other in zip(batches, others):
    tf.nest.map_structure(np.testing.assert_array_equal, batch, other)


def unpack_side(side, row, tokens):
  """Returns the sentences of a row, after checking how they are laid out."""
  segment, pos = side['segment_ids'][row], side['segment_pos'][row]
  used = np.count_nonzero(segment)
  for name, value in side.items():
    assert value.dtype == np.int32
    assert not value[row, used:].any(), f'{name} has padding that is not 0'
  segments = segment[:used].tolist()
  assert sorted(set(segments)) == list(range(1, max(segments, default=0) + 1))
  assert segments == sorted(segments)
  sentences = []
  for _, columns in itertools.groupby(range(used), key=segments.__getitem__):
    columns = list(columns)
    assert pos[columns].tolist() == list(range(len(columns)))
    sentences.append(side[tokens][row, columns].tolist())
  return sentences


def unpack(batches):
  """Returns the (source, target) ids of each row of all batches, checked."""
  rows = []
  for batch in batches:
    for row in range(len(batch['src']['ids'])):
      source = unpack_side(batch['src'], row, 'ids')
      target = unpack_side(batch['tgt'], row, 'labels')
      shifted = [[tokenizers.BOS, *labels[:-1]] for labels in target]
      assert unpack_side(batch['tgt'], row, 'ids') == shifted
      assert all(ids[-1] == tokenizers.EOS for ids in source + target)
      assert len(source) == len(target)
      rows.append(list(zip(source, target)))
  return rows


def fitting(pairs, batch_format):
  return [pair for pair in pairs if len(pair[0]) <= batch_format.source_length
          and len(pair[1]) <= batch_format.target_length]


def check_next_fit(rows, batch_format):
  """Asserts that each row but the last could not take the next one's first."""
  for row, (first, *_) in itertools.pairwise(rows):
    source, target = (sum(len(pair[side]) for pair in [*row, first])
                      for side in (0, 1))
    assert (source > batch_format.source_length or
            target > batch_format.target_length or not batch_format.packing)
