"""What the compiler made of a model: names, tensors, and bad tables found out."""

import functools

import jax
import numpy as np
import pytest

from gshard_tf.params import sharding
from gshard_tf.runtime import explanation
from gshard_tf.runtime import mesh as mesh_lib
from tests import lowered
from tests.lowered import Small

pytestmark = pytest.mark.slow

# Faults in the table for a line of eight devices: experts' weights along the
# hidden units, a dense weight along its rows, the experts' buffers whole.
FAULTS = {'emh': (None, None, 'expert'), 'mh': ('expert', None), 'gzm': (None, None, None)}
TOKENS = Small.ROWS * Small.SOURCE_LENGTH


def explain(mesh_shape, function, table, **constants):
  task = lowered.task(SHARDING=sharding.SPLIT_VOCABULARY | table, **constants)
  artifact = lowered.lower(mesh_shape, functions=[function], task_params=task)
  return explanation.explain(
      artifact, mesh_lib.make(mesh_shape, sharding.MESH_AXES), function).as_dict()


@functools.cache
def faulty():
  return explain((8, 1), 'evaluate', FAULTS)


@functools.cache
def good():
  """A train step, the encoder's blocks in a loop."""
  return explain((8, 1), 'train', {}, ENCODER_LAYERS=4, REPEAT=True, REMAT='block')


def test_faults_of_a_table_are_found_in_their_layers():
  red = {(row['entry'], row['layer'].removesuffix('.experts'), row['kind'])
         for row in faulty()['unrequested']}
  assert red == {
      (letters, f'{stack}.blocks_{block}.feed_forward', kind)
      for stack in ('encoder', 'decoder')
      for letters, block, kind in (('emh', 1, 'all-to-all'), ('mh', 0, 'all-gather'),
                                   ('gzm', 1, 'all-gather'))}


def test_the_faults_have_their_bytes_and_layouts():
  dense, = [row for row in faulty()['unrequested']
            if row['entry'] == 'mh' and row['layer'].startswith('encoder')]
  assert dense['shape'] == (Small.MODEL_DIM, Small.HIDDEN_DIM)
  assert dense['bytes'] == Small.MODEL_DIM * Small.HIDDEN_DIM * 4
  assert (dense['from'], dense['to']) == (('expert', None), (None, None))
  assert 'weight encoder.blocks_0.feed_forward.wi' in dense['annotation']


def test_the_recommended_entries_remove_them():
  recommended = {row['entry']: row['mapping'] for row in faulty()['unrequested']}
  assert recommended == {letters: sharding.GSHARD[letters] if letters != 'mh' else (None, None)
                         for letters in FAULTS} | {'emh': ('expert', None, None)}
  assert not explain((8, 1), 'evaluate', FAULTS | recommended)['unrequested']


def test_a_good_table_has_nothing_red():
  assert not good()['unrequested']


def test_every_collective_has_an_operation_and_a_layer():
  layers = [w['layer'] for w in good()['weights']] + ['(model)', '(optimizer)']
  for row in good()['collectives']:
    assert row['op'] and any(f'{l}.'.startswith(f'{row["layer"]}.') for l in layers), row
    assert row['bytes'] > 0 and row['group_size'] == 8 and row['axes'] == ('expert',)
    assert row['requested'] and row['cause']


def test_the_experts_exchange_tokens():
  """Six all-to-alls in each of two rounds: two forward, again for the gradient, two of it."""
  moves = [row for row in good()['collectives'] if row['kind'] == 'all-to-all']
  assert {row['layer'] for row in moves} == {
      'encoder.blocks_1::2.feed_forward.experts', 'decoder.blocks_1.feed_forward.experts'}
  moves = [row for row in moves if row['layer'].startswith('encoder')]
  assert {row['cause'] for row in moves} == {'gecm -> egcm', 'egcm -> gecm'}
  assert sum(row['times'] for row in moves) == 6 * 2
  assert sum(row['times'] for row in moves if row['backward']) == 2 * 2


def test_what_a_device_has_of_the_weights():
  mesh = mesh_lib.make((8, 1), sharding.MESH_AXES)
  weights = faulty()['weights']
  assert {w['layer'] + '.' + w['name'] for w in weights} == {w.path for w in lowered.steps().specs}
  table = sharding.SPLIT_VOCABULARY | FAULTS
  for w in weights:
    spec = jax.sharding.PartitionSpec(*table[w['letters']])
    shard = jax.sharding.NamedSharding(mesh, spec).shard_shape(w['shape'])
    assert w['device_shape'] == shard and w['bytes'] == 4 * np.prod(shard), w


def test_annotated_activations():
  dispatched = [a for a in good()['activations']
                if (a['layer'], a['name']) == ('encoder.blocks_1::2.feed_forward.experts', 'egcm')]
  capacity = int(Small.CAPACITY_FACTOR * TOKENS / Small.NUM_GROUPS / Small.NUM_EXPERTS)
  shape = (Small.NUM_EXPERTS, Small.NUM_GROUPS, capacity, Small.MODEL_DIM)
  assert {a['shape'] for a in dispatched} == {shape}
  assert {a['device_shape'] for a in dispatched} == {(1, *shape[1:])}
  assert {a['sharding'] for a in dispatched} == {('expert', None, None, None)}


def test_totals_by_layer_and_kind():
  result = good()
  for key in ('collectives', 'weights'):
    assert sum(l[key] for l in result['layers']) == sum(row['bytes'] for row in result[key])
  assert sum(k['bytes'] for k in result['kinds'].values()) == sum(
      row['bytes'] for row in result['collectives'])


def test_a_decoding_step():
  result = explain((8, 1), 'decode', {})
  assert len(result['weights']) == len(lowered.steps().specs)
  assert not result['unrequested']
