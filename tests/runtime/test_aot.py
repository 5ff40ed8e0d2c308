"""Reading what the TPU compiler says."""

import jax
import numpy as np
import pytest

from gshard_tf.runtime import aot

_HLO = '''
  %a2a = (f32[1,16,64]{2,1,0}, /*index=1*/f32[1,16,64]{2,1,0}) all-to-all(%x, %y), channel_id=1
  %ag = bf16[256,64]{1,0:T(8,128)} all-gather(%z), channel_id=2
  %ar = (f32[8]{0}, pred[]) all-reduce-start(%u, %v), channel_id=3
  %done = (f32[8]{0}, pred[]) all-reduce-done(%ar)
  %dot = f32[8,8]{1,0} dot(%u, %v)
'''


def test_counts_collectives_once_with_the_bytes_of_their_results():
  assert aot.collectives(_HLO) == {
      'all-to-all': aot.Collectives(1, 2 * 16 * 64 * 4),
      'all-gather': aot.Collectives(1, 256 * 64 * 2),
      'all-reduce': aot.Collectives(1, 8 * 4 + 1)}


def test_counts_the_collectives_of_a_program_of_known_shape():
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]), ('d',))
  split, whole = (jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
                  for axes in (('d',), ()))
  text = jax.jit(lambda x: x * 2, in_shardings=split, out_shardings=whole).lower(
      jax.ShapeDtypeStruct((64, 3), np.float32)).compile().as_text()
  assert aot.collectives(text) == {'all-gather': aot.Collectives(1, 64 * 3 * 4)}


@pytest.mark.parametrize('topology, sizes, part', [
    ('v3:2x2', (4, 1), '8 cores of v3:2x2; choose sizes whose product is 8'),
    ('v99:2x2', None, 'libtpu cannot describe it'),
])
def test_a_topology_that_cannot_be_had(topology, sizes, part):
  aot.prepare()
  with pytest.raises(aot.TopologyError, match=part):
    aot.topology_mesh(topology, sizes, ('expert', 'model'))
