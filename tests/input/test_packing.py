"""Tests of gshard_tf.input.packing."""

import itertools

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest
import tensorflow as tf

from gshard_tf.input import packing
from gshard_tf.input import tokenizer as tokenizers
from tests.input import rows as layout

LENGTHS = st.integers(2, 30)
FORMATS = st.builds(packing.BatchFormat, st.just(1), LENGTHS, LENGTHS,
                    st.booleans())
_SENTENCES = 1000  # of the corpus that examples are drawn from


@st.composite
def streams(draw):
  """Draws a format, a first example, and blocks of pairs or None, too long."""
  batch_format = draw(FORMATS)
  side = lambda length: st.integers(1, length).map(
      lambda tokens: [*range(10, 9 + tokens), tokenizers.EOS])
  example = st.one_of(
      st.tuples(side(batch_format.source_length),
                side(batch_format.target_length)), st.none())
  blocks = draw(st.lists(st.lists(example, max_size=20), min_size=1, max_size=5))
  return batch_format, draw(st.integers(0, 2**40)), blocks


def pack_block(state, first, block, last, batch_format):
  """Calls `pack` with a block of examples; returns the state and the rows."""
  kept = [(i, pair) for i, pair in enumerate(block) if pair]
  flat = lambda side: tf.constant(
      list(itertools.chain(*(pair[side] for _, pair in kept))), tf.int32)
  lengths = lambda side: tf.constant(
      [len(pair[side]) for _, pair in kept], tf.int64)
  sentences = dict(
      index=tf.constant([first + i for i, _ in kept], tf.int64),
      sentence=tf.constant([(first + i) % _SENTENCES for i, _ in kept], tf.int32),
      src=flat(0), src_lengths=lengths(0), tgt=flat(1), tgt_lengths=lengths(1))
  return packing.pack(state, sentences, tf.constant(first + len(block), tf.int64),
                      tf.constant(last), batch_format)


def pack_all(batch_format, start, blocks):
  """Returns the rows of all blocks as one dict of NumPy arrays."""
  state, outputs = packing.empty_state(start), []
  for number, block in enumerate(blocks, start=1):
    state, rows = pack_block(state, start, block, number == len(blocks),
                             batch_format)
    start += len(block)
    outputs.append(rows)
  assert not len(state[0]['src']) and not len(state[0]['index'])
  return tf.nest.map_structure(lambda *parts: np.concatenate(parts), *outputs)


def unpack(rows):
  """Returns the pairs of each row, after checking how they are laid out."""
  return [
      list(zip(layout.unpack_side(rows['src'], row, 'ids'),
               layout.unpack_side(rows['tgt'], row, 'ids'), strict=True))
      for row in range(len(rows['position']))]


@settings(max_examples=40, deadline=None)
@given(streams())
def test_every_pair_is_packed_whole_once_and_in_order(stream):
  batch_format, _, blocks = stream
  rows = pack_all(*stream)
  assert rows['src']['ids'].shape[1:] == (batch_format.source_length,)
  assert rows['tgt']['ids'].shape[1:] == (batch_format.target_length,)
  pairs = unpack(rows)
  assert all(pairs)
  assert list(itertools.chain(*pairs)) == [
      pair for pair in itertools.chain(*blocks) if pair]
  layout.check_next_fit(pairs, batch_format)
  if not batch_format.packing:
    assert all(len(row) == 1 for row in pairs)


@settings(max_examples=20, deadline=None)
@given(streams())
def test_blocks_do_not_show_in_the_rows(stream):
  batch_format, start, blocks = stream
  whole = [list(itertools.chain(*blocks))]
  parts = pack_all(*stream)
  joined = pack_all(batch_format, start, whole)
  tf.nest.map_structure(np.testing.assert_array_equal, parts, joined)


@settings(max_examples=20, deadline=None)
@given(streams(), st.data())
def test_packing_continues_from_the_position_of_any_row(stream, data):
  batch_format, start, blocks = stream
  rows = pack_all(*stream)
  examples = list(itertools.chain(*blocks))
  row = data.draw(st.integers(-1, len(rows['position']) - 1))
  position = int(rows['position'][row]) if row >= 0 else start
  resumed = pack_all(batch_format, position, [examples[position - start:]])
  for name in ('src', 'tgt', 'position', 'skipped'):
    tf.nest.map_structure(lambda whole, rest: np.testing.assert_array_equal(
        whole[row + 1:], rest), rows[name], resumed[name])


@settings(max_examples=20, deadline=None)
@given(streams())
def test_every_token_knows_its_sentence(stream):
  _, start, blocks = stream
  rows = pack_all(*stream)
  kept = [(start + i) % _SENTENCES for i, pair in enumerate(itertools.chain(*blocks)) if pair]
  for side in (rows['src'], rows['tgt']):
    found = []
    for row in range(len(rows['position'])):
      for same in layout.unpack_side(side, row, 'sentence'):
        assert len(set(same)) == 1
        found.append(same[0])
    assert found == kept


@settings(max_examples=20, deadline=None)
@given(streams())
def test_positions_count_what_was_packed_and_what_was_skipped(stream):
  _, start, blocks = stream
  rows = pack_all(*stream)
  spans = np.diff(rows['position'], prepend=start)
  np.testing.assert_array_equal(
      spans, [len(row) for row in unpack(rows)] + rows['skipped'])
  if len(spans):
    assert rows['position'][-1] == start + sum(map(len, blocks))


def test_a_row_takes_what_fills_it_exactly():
  batch_format = packing.BatchFormat(1, 6, 4)
  pair = ([9, 9, 2], [9, 2])
  rows = pack_all(batch_format, 0, [[pair] * 4])
  assert unpack(rows) == [[pair] * 2] * 2
  assert np.all(rows['src']['segment_ids']) and np.all(rows['tgt']['ids'])


def test_nothing_that_fits_is_an_error_in_the_end():
  batch_format = packing.BatchFormat(1, 6, 4)
  state, _ = pack_block(packing.empty_state(0), 0,
                        [None] * (packing.MAX_SKIPPED - 1), False, batch_format)
  with pytest.raises(tf.errors.InvalidArgumentError,
                     match='longer than source_length 6 or target_length 4'):
    pack_block(state, packing.MAX_SKIPPED - 1, [None], False, batch_format)


@pytest.mark.parametrize('values, message', [
    ((0, 8, 8), 'batch_size is 0, not >= 1'),
    ((1, 1, 8), 'source_length is 1, not >= 2'),
    ((1, 8, -3), 'target_length is -3, not >= 2'),
])
def test_a_size_out_of_range_is_refused(values, message):
  with pytest.raises(ValueError, match=message):
    packing.BatchFormat(*values)
