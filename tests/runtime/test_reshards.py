"""Which collectives nobody asked for, and what removes them."""

import numpy as np
import pytest
import tensorflow as tf

from gshard_tf import xla_sharding
from gshard_tf.runtime import reshards
from tests.runtime import explained

LAYER = explained.LAYER
LINE = xla_sharding.Mesh((8,), ('d',))
PLANE = xla_sharding.Mesh((4, 2), ('d', 'm'))
# Data along d, hidden units along m.
GOOD = {'bm': ('d', None), 'bh': ('d', 'm'), 'mh': (None, 'm'), 'hm': ('m', None)}
WEIGHTS = dict(wi=((16, 64), 'mh'), wo=((64, 16), 'hm'))


def layer(table):
  return explained.explain(explained.relu_layer, PLANE, table, (32, 16), **WEIGHTS)[1]


def unrequested(found):
  return [(c, cause) for c, cause in found if cause.fix]


def test_sums_are_asked_for():
  found = layer(GOOD)
  (reduce, cause), = found
  assert reduce.kind == 'all-reduce' and cause.fix is None
  assert cause.asked == 'a sum over m' and cause.axes == ('m',)
  assert (cause.origin.layer, cause.origin.op) == (LAYER, 'einsum_1/Einsum')


@pytest.mark.parametrize('bad, mapping', [
    ({'mh': ('d', None)}, (None, 'm')),
    ({'mh': ('d', 'm')}, (None, 'm')),
    ({'hm': (None, 'd')}, ('m', None)),
])
def test_a_weight_that_its_use_does_not_fit(bad, mapping):
  letters, = bad
  red = unrequested(layer(GOOD | bad))
  assert red
  for c, cause in red:
    assert cause.origin.layer == LAYER and 'Einsum' in cause.origin.op
    assert cause.fix.letters == letters and cause.fix.mapping == mapping
    assert f'{letters!r}' in cause.fix.text
  assert not unrequested(layer(GOOD | {letters: red[0][1].fix.mapping}))


def test_between_two_annotations_is_asked_for():
  """From rows to columns: the all-to-all is the purpose."""
  def f(theta, note, x):
    return note(tf.sin(note(x * 2., 'ab')), 'ab_columns')
  _, found = explained.explain(f, LINE, {'ab': ('d', None), 'ab_columns': (None, 'd')}, (16, 24))
  (move, cause), = found
  assert move.kind == 'all-to-all' and cause.fix is None and cause.asked == 'ab -> ab_columns'
  assert (cause.before, cause.after) == ((('d',), ()), ((), ('d',)))


def test_an_annotation_that_gives_up_what_the_next_takes_up_again():
  def f(theta, note, x):
    x = note(tf.sin(note(x * 2., 'ab')), 'ab_middle')
    return note(tf.reshape(tf.cos(x), [16, 4, 6]), 'acd')
  good = {'ab': ('d', None), 'ab_middle': ('d', None), 'acd': ('d', None, None)}
  _, found = explained.explain(f, LINE, good | {'ab_middle': (None, None)}, (16, 24))
  (gather, cause), = found
  assert gather.kind == 'all-gather' and gather.bytes == 16 * 24 * 4
  assert cause.fix.letters == 'ab_middle' and cause.fix.mapping == ('d', None)
  assert "'ab_middle' gives up what 'acd'" in cause.fix.text
  assert not explained.explain(f, LINE, good, (16, 24))[1]


def test_an_operand_that_needs_the_same_axis():
  """A table split along the vocabulary beside tokens split along the batch."""
  def f(theta, note, x):
    ids = note(tf.cast(x, tf.int32), 'b')
    return note(tf.gather(note(theta[f'{LAYER}.rows'], 'vm_lookup'), ids), 'bm')
  table = {'b': ('d',), 'bm': ('d', None), 'vm': ('d', None)}
  run = lambda entry: explained.explain(
      f, LINE, table | {'vm_lookup': entry}, (32,), rows=((64, 16), 'vm'))[1]
  red = unrequested(run(('d', None)))
  assert red and all(cause.fix.letters == 'vm_lookup' for _, cause in red)
  assert {cause.fix.mapping for _, cause in red} == {(None, None)}
  (gather, cause), = run((None, None))
  assert gather.kind == 'all-gather' and cause.fix is None and cause.asked == 'vm -> vm_lookup'


def test_a_layout_that_nobody_asks_to_give_up():
  """A product along the split dimension needs it whole, and nothing follows."""
  def f(theta, note, x):
    return tf.sort(note(x * 2., 'ab'), axis=0)[:1]
  _, found = explained.explain(f, LINE, {'ab': ('d', None)}, (16, 24))
  red = unrequested(found)
  assert red and 'annotate' in red[0][1].fix.text
  assert red[0][1].origin.layer == LAYER


def test_a_whole_copy_between_two_layouts():
  """Six devices, since XLA finds a way for powers of two."""
  mesh = xla_sharding.Mesh((3, 2), ('d', 'm'))
  def f(theta, note, x):
    return note(tf.sin(note(x * 2., 'ab')), 'ab_turned')
  table = {'ab': ('d', 'm'), 'ab_turned': ('m', 'd')}
  _, found = explained.explain(f, mesh, table, (24, 24))
  red = unrequested(found)
  assert len(red) == len(found) == 2
  for gather, cause in red:
    assert gather.kind == 'all-gather' and 'whole onto every device' in cause.fix.text
    assert (cause.fix.letters, cause.fix.mapping) == ('ab_turned', ('d', 'm'))
  assert not explained.explain(f, mesh, table | {'ab_turned': ('d', 'm')}, (24, 24))[1]


def test_neighbours_edges_are_asked_for():
  def f(theta, note, x):
    x = note(x[..., None], 'bwc')
    kernel = np.ones([3, 1, 1], np.float32)
    return note(tf.nn.conv1d(x, kernel, 1, 'SAME'), 'bwc')
  _, found = explained.explain(f, LINE, {'bwc': (None, 'd', None)}, (4, 64))
  assert {c.kind for c, _ in found} == {'collective-permute'}
  assert all('edges' in cause.asked for _, cause in found)


def test_reads_the_warning_of_xla():
  said = ('W spmd_partitioner.cc:656] [SPMD] Involuntary full rematerialization. The compiler '
          'cannot go from sharding {a} to {b} efficiently for HLO operation %copy = f32[8] copy(%x)'
          ', metadata={op_name="jit(f)/a/Sin" source_line=1}. As the last resort')
  assert reshards.rematerialized(f'other\n{said}\n') == {'jit(f)/a/Sin'}
