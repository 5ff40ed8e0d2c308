"""Listing the collectives of a program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from gshard_tf.runtime import collectives
from gshard_tf.runtime import hlo

P = jax.sharding.PartitionSpec
_HLO = '''
  %a2a = (f32[1,16,64]{2,1,0}, /*index=1*/f32[1,16,64]{2,1,0}) all-to-all(%x, %y), channel_id=1
  %ag = bf16[256,64]{1,0:T(8,128)} all-gather(%z), channel_id=2, dimensions={0}
  %ar = (f32[8]{0}, pred[]) all-reduce-start(%u, %v), channel_id=3, metadata={op_name="a;b"}
  %done = (f32[8]{0}, pred[]) all-reduce-done(%ar)
  %one = f32[8]{0} get-tuple-element(%done), index=0, metadata={op_name="f/a"}
  %other = pred[] get-tuple-element(%done), index=1, metadata={op_name="f/b"}
  %start = (f32[2,4]{1,0}, f32[8,4]{1,0}) all-gather-start(%w), channel_id=4, dimensions={0}
  %end = f32[8,4]{1,0} all-gather-done(%start)
  %dot = f32[8,8]{1,0} dot(%u, %v)
'''


def test_counts_collectives_once_with_the_bytes_of_their_results():
  assert collectives.totals(collectives.read(hlo.parse(_HLO))) == {
      'all-to-all': (1, 2 * 16 * 64 * 4),
      'all-gather': (2, 256 * 64 * 2 + 8 * 4 * 4),
      'all-reduce': (1, 8 * 4 + 1)}


def test_what_is_combined_is_told_apart():
  parts = [c for c in collectives.read(hlo.parse(_HLO)) if c.kind == 'all-reduce']
  assert [(c.name, c.op_name, c.bytes) for c in parts] == [('ar', 'f/a', 32), ('ar', 'f/b', 1)]


@functools.cache
def _compiled(function, *shardings):
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ('x', 'y'))
  before, after = (jax.sharding.NamedSharding(mesh, s) for s in shardings)
  with jax.set_mesh(mesh):
    text = jax.jit(function, in_shardings=before, out_shardings=after).lower(
        jax.ShapeDtypeStruct((64, 8), np.float32)).compile().as_text()
  return collectives.read(hlo.parse(text))


def test_of_a_program_of_known_shape():
  gather, = _compiled(lambda x: x * 2, P('x'), P())
  assert (gather.kind, gather.shape, gather.bytes, gather.operand_bytes, gather.times) == (
      'all-gather', hlo.Shape('f32', (64, 8)), 64 * 8 * 4, 16 * 8 * 4, 1)
  assert gather.dimensions == (0,)
  np.testing.assert_array_equal(gather.groups, [[0, 2, 4, 6], [1, 3, 5, 7]])
  assert gather.group_size == 4


def test_a_collective_in_a_loop_counts_as_often_as_it_runs():
  def step(x, _):
    return jax.shard_map(lambda y: jax.lax.psum(jnp.sin(y), 'x') / 4, in_specs=P('x', 'y'),
                         out_specs=P(None, 'y'))(jnp.tile(x, (4, 1))[:64]), None
  found = _compiled(lambda x: jax.lax.scan(step, x[:16], None, length=7)[0], P(), P())
  reduces = [c for c in found if c.kind == 'all-reduce']
  assert [c.times for c in reduces] == [7]
  assert collectives.totals(found)['all-reduce'] == (7, 7 * 16 * 4 * 4)
