"""Packs sentence pairs into rows of a fixed shape, by next fit.

Pairs go into rows in their order. One that does not fit either side of the row
in progress ends it and begins the next row, so a row depends on where it begins
and on nothing earlier. The functions are pure and vectorised over the sentences
of a block; the only loop runs over rows.

Dimension letters: N sentences at hand, R rows finished, L tokens of a row
(source_length or target_length), V tokens of all sentences.
"""

import dataclasses

import tensorflow as tf

# This many examples on end, all too long for a row, are an error.
MAX_SKIPPED = 1 << 14


@dataclasses.dataclass(frozen=True)
class BatchFormat:
  """The shape of a batch.

  Attributes:
    batch_size: rows of a batch.
    source_length: source tokens of a row, an eos for each sentence included.
    target_length: the same for the target, a bos or an eos included.
    packing: whether a row takes several sentences, or one.
  """
  batch_size: int
  source_length: int
  target_length: int
  packing: bool = True

  def __post_init__(self):
    # A side holds at least one token and its eos.
    for name, least in (('batch_size', 1), ('source_length', 2),
                        ('target_length', 2)):
      value = getattr(self, name)
      if value < least:
        raise ValueError(f'{name} is {value}, not >= {least}; set {name} to '
                         f'{least} or more')


def empty_state(start):
  """The state before the first block.

  Args:
    start: <int64>[], the first example.

  Returns:
    The `state` of `pack`.
  """
  nothing = dict(
      index=tf.zeros([0], tf.int64), sentence=tf.zeros([0], tf.int32),
      src=tf.zeros([0], tf.int32), src_lengths=tf.zeros([0], tf.int64),
      tgt=tf.zeros([0], tf.int32), tgt_lengths=tf.zeros([0], tf.int64))
  return nothing, tf.constant(start, tf.int64)


def pack(state, sentences, end, last, batch_format):
  """Packs the sentences left over and those of a block into rows.

  Args:
    state: the sentences of the row in progress, and <int64>[], the example that
      begins it.
    sentences: those of the block, each short enough for a row: a dict of index,
      sentence, src_lengths and tgt_lengths [N], src and tgt [V].
    end: <int64>[], the example after this block.
    last: <bool>[], whether no more follow: the row in progress ends, too.
    batch_format: a `BatchFormat`.

  Returns:
    The new state and a dict of R rows. `sentence` of a side is <int32>[R, L], that
    of each token, 0 at padding.
  """
  pending, begin = state
  pending = {key: tf.concat([pending[key], sentences[key]], 0)
             for key in sentences}
  src_ends = _prefix_sums(pending['src_lengths'])  # [N + 1]
  tgt_ends = _prefix_sums(pending['tgt_lengths'])  # [N + 1]
  starts = _row_starts(src_ends, tgt_ends, last, batch_format)  # [R + 1]
  sizes = starts[1:] - starts[:-1]  # [R]
  done = starts[-1]

  rows = dict(
      src=_side(pending['src'], src_ends, starts, batch_format.source_length),
      tgt=_side(pending['tgt'], tgt_ends, starts, batch_format.target_length))
  for side in rows.values():
    segment = side['segment_ids']  # [R, L]
    number = starts[:-1, None] + tf.cast(segment, tf.int64) - 1
    side['sentence'] = tf.where(
        segment > 0, tf.gather(pending['sentence'], tf.maximum(number, 0)), 0)
  ends = tf.gather(tf.concat([pending['index'], [end]], 0), starts[1:])  # [R]
  bounds = tf.concat([[begin], ends], 0)  # [R + 1]
  rows['position'] = ends
  rows['skipped'] = tf.cast(bounds[1:] - bounds[:-1] - sizes, tf.int32)
  if not batch_format.packing:
    rows['sentence'] = tf.gather(pending['sentence'], starts[:-1])

  tf.debugging.Assert(
      (tf.size(pending['index']) > 0) | (end - begin < MAX_SKIPPED),
      [f'{MAX_SKIPPED} sentences on end are longer than source_length '
       f'{batch_format.source_length} or target_length '
       f'{batch_format.target_length}; raise these'])
  cut = dict(src=src_ends[done], tgt=tgt_ends[done])
  pending = {key: value[cut.get(key, done):] for key, value in pending.items()}
  return (pending, bounds[-1]), rows


def _prefix_sums(lengths):
  """From <int64>[N] to <int64>[N + 1]: where each sentence begins, and the end."""
  return tf.concat([[0], tf.cumsum(lengths)], 0)


def _row_starts(src_ends, tgt_ends, last, batch_format):
  """Next fit: the first sentence of each row.

  Args:
    src_ends: <int64>[N + 1], prefix sums of the source lengths.
    tgt_ends: <int64>[N + 1], the same for the target.
    last: <bool>[], whether the row in progress ends with sentence N.
    batch_format: a `BatchFormat`.

  Returns:
    <int64>[R + 1], the first sentences of R finished rows and of what is left.
  """
  sentences = tf.size(src_ends, tf.int64) - 1

  # The row that begins with sentence n would end before sentence following[n].
  following = tf.minimum(
      _interval(src_ends, src_ends + batch_format.source_length),
      _interval(tgt_ends, tgt_ends + batch_format.target_length))  # [N + 1]
  if not batch_format.packing:
    following = tf.minimum(following, tf.range(1, sentences + 2))
  # A row that could take more is finished only where no more follow.
  finished = sentences + tf.cast(last, tf.int64)

  def more(start, unused_starts):
    return (start < sentences) & (following[start] < finished)

  def advance(start, starts):
    return following[start], starts.write(starts.size(), following[start])

  starts = tf.TensorArray(tf.int64, 1, dynamic_size=True, element_shape=[])
  zero = tf.constant(0, tf.int64)
  _, starts = tf.while_loop(more, advance, (zero, starts.write(0, zero)))
  return starts.stack()


def _side(tokens, ends, starts, length):
  """Lays out one side of R rows.

  Args:
    tokens: <int32>[V], of all sentences.
    ends: <int64>[N + 1], prefix sums of the sentences' lengths.
    starts: <int64>[R + 1], the first sentence of each row and the end.
    length: L.

  Returns:
    A dict of ids, segment_ids and segment_pos, each <int32>[R, L].
  """
  splits = tf.gather(ends, starts)  # [R + 1]
  token = tf.range(splits[-1])  # [V], of the finished rows from here on.
  sentence = _interval(ends, token)
  row = _interval(starts, sentence)
  values = tf.stack([
      tf.cast(tokens[:splits[-1]], tf.int64),
      sentence - tf.gather(starts, row) + 1,
      token - tf.gather(ends, sentence),
  ], axis=1)  # [V, 3]
  rows = tf.RaggedTensor.from_row_splits(
      tf.cast(values, tf.int32), splits, validate=False)
  ids, segment_ids, segment_pos = tf.unstack(
      rows.to_tensor(shape=[None, length, 3]), axis=-1)
  return dict(ids=ids, segment_ids=segment_ids, segment_pos=segment_pos)


def _interval(bounds, values):
  """The number of the interval [bounds[i], bounds[i + 1]) that holds each value."""
  return tf.searchsorted(bounds, values, side='right', out_type=tf.int64) - 1
