"""Names, and where the dimensions of operands go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf

from gshard_tf import xla_sharding
from gshard_tf.runtime import dataflow
from gshard_tf.runtime import hlo
from tests.runtime import explained

LAYERS = {'encoder': 'encoder', 'encoder.blocks_1': 'encoder.blocks_1::2'}


@pytest.mark.parametrize('name, want', [
    ('jit(_train)/call_exported/jit(train)/call_tf/PartitionedCall/encoder.blocks_1/egcm_1/XlaSharding',
     ('encoder.blocks_1::2', 'egcm_1/XlaSharding', 'egcm', False)),
    ('jit(f)/call_tf/gradient_tape/encoder/einsum/Einsum_1;PartitionedCall/gradient_tape/x/Einsum',
     ('encoder', 'einsum/Einsum_1', None, True)),
    ('jit(f)/call_tf/PartitionedCall/encoder/while/body/encoder.blocks_1/Relu',
     ('encoder.blocks_1::2', 'Relu', None, False)),
    ('jit(f)/call_tf/gradient_tape/encoder/vm_lookup/XlaSharding/input',
     ('encoder', 'vm_lookup/XlaSharding/input', 'vm_lookup', True)),
    ('jit(f)/call_tf/PartitionedCall/XlaSharding', ('(model)', 'XlaSharding', '', False)),
    ('jit(f)/call_tf/PartitionedCall/(Sum_1:Sum)', ('(model)', 'Sum_1', None, False)),
    ('jit(_train)/reduce_sum', ('(optimizer)', 'jit(_train)/reduce_sum', None, False)),
])
def test_origins(name, want):
  assert dataflow.origin(name, LAYERS) == want


def _marked(function, *shapes):
  """For each operand of the root of `function` the dimension that each of its own becomes."""
  args = [jax.ShapeDtypeStruct(s, np.float32) for s in shapes]
  hlo_module = jax.jit(function).lower(*args).compiler_ir('hlo').as_hlo_module()
  module = hlo.parse(hlo_module.to_string())
  root = next(i for i in module.computations[module.entry].values() if i.is_root)
  dims = [module.computations[module.entry][o].shape.dims for o in root.operands]
  return [dataflow.dim_map(root, dims, n) for n in range(len(dims))]


@pytest.mark.parametrize('function, shapes, want', [
    (jnp.add, [(2, 3), (2, 3)], [(0, 1), (0, 1)]),
    (lambda x: jnp.transpose(x, (2, 0, 1)), [(2, 3, 4)], [(1, 2, 0)]),
    (lambda x: jax.lax.broadcast_in_dim(x, (3, 5, 2), (0, 2)), [(3, 2)], [(0, 2)]),
    (lambda x: x.reshape(6, 4), [(2, 3, 4)], [(0, None, 1)]),
    (lambda x: x.reshape(2, 3, 4), [(6, 4)], [(0, 2)]),
    (lambda x: x.reshape(3, 1, 5), [(1, 3, 5)], [(None, 0, 2)]),
    (lambda x: jax.lax.reduce_max_p.bind(x, axes=(1,), out_sharding=None), [(2, 3, 4)],
     [(0, None, 1), ()]),
    (lambda x, y: jax.lax.dot_general(x, y, (((2,), (1,)), ((0,), (0,)))),
     [(5, 2, 3), (5, 3, 4)], [(0, 1, None), (0, None, 2)]),
    (lambda x: x[:, 1:3], [(2, 4)], [(0, 1)]),
])
def test_dimensions_through(function, shapes, want):
  assert _marked(function, *shapes) == want


def test_a_batched_gather_keeps_its_batch():
  """What tf.gather makes of batch_dims: the batch is counted beside the indices."""
  mesh = xla_sharding.Mesh((8,), ('d',))
  def f(theta, note, x, index):
    x, index = note(x * 2., 'gzm'), note(tf.cast(index, tf.int32), 'gs')
    return note(tf.gather(x, index, batch_dims=1), 'gsm')
  table = {'gzm': ('d', None, None), 'gs': ('d', None), 'gsm': ('d', None, None)}
  graph, found = explained.explain(f, mesh, table, (8, 5, 3), (8, 4))
  assert not found
  gather = next(i for i in graph.instructions.values() if i.opcode == 'gather')
  assert graph.dim_map(gather, 0) == (0, None, 2)
  x = next(a for a in graph.annotations() if graph.origin(a).letters == 'gzm')
  (after, dims), = graph.next_annotations(x)
  assert graph.origin(after).letters == 'gsm' and dims == (0, None, 2)


def test_weights_are_found_behind_their_annotations():
  mesh = xla_sharding.Mesh((4, 2), ('d', 'm'))
  table = {'bm': ('d', None), 'bh': ('d', 'm'), 'mh': (None, 'm'), 'hm': ('m', None)}
  graph, _ = explained.explain(explained.relu_layer, mesh, table, (32, 16),
                               wi=((16, 64), 'mh'), wo=((64, 16), 'hm'))
  found = {graph.weight(a) for a in graph.annotations()} - {None}
  assert found == {('encoder.ffn.wi', 'mh', (0, 1)), ('encoder.ffn.wo', 'hm', (0, 1))}
  relu = next(i for i in graph.instructions.values() if i.opcode == 'maximum')
  assert graph.label(relu) == 'bh' and graph.weight(relu) is None
