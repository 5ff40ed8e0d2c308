"""Compiling for TPUs that are not there."""

import jax
import jax.numpy as jnp
import pytest

from gshard_tf.runtime import aot
from gshard_tf.runtime import mesh as mesh_lib
from gshard_tf.runtime import topologies
from tests.runtime import tpu_programs


@pytest.mark.parametrize('topology, sizes, part', [
    ('v3:2x2', (4, 1), '8 cores of v3:2x2; choose sizes whose product is 8'),
    ('v99:2x2', None, 'libtpu cannot describe it'),
])
def test_a_topology_that_cannot_be_had(topology, sizes, part):
  aot.prepare()
  with pytest.raises(aot.TopologyError, match=part):
    aot.topology_mesh(topology, sizes, ('expert', 'model'))


def test_the_last_axis_takes_what_the_model_asks_for():
  aot.prepare()
  mesh = lambda last: aot.topology_mesh('v3:2x2', None, ('expert', 'model'), last)
  assert dict(mesh(2).shape) == dict(expert=4, model=2)
  assert dict(mesh(1).shape) == dict(expert=8, model=1)
  with pytest.raises(mesh_lib.MeshError, match='do not split'):
    mesh(3)


def test_a_program_that_does_not_fit_is_refused_with_its_buffers():
  size = 40_000  # 6 GB a square
  def product(w, x):
    with jax.named_scope('decoder.blocks_7.feed_forward'):
      return jnp.tanh(w @ x)
  report = aot.compile_program(
      tpu_programs.lower(product, (size, size), (size, size)), topologies.find('v3:2x2'))
  assert not report.fits
  assert report.hbm_limit == pytest.approx(topologies.find('v3:2x2').generation.hbm_limit, rel=.001)
  assert report.memory['total'] > report.hbm_limit
  assert report.flops_per_core is None and not report.collectives
  largest = report.buffers[0]
  assert largest.bytes >= size**2 * 4
  assert any('decoder.blocks_7.feed_forward' in b.op_name for b in report.buffers[:4])


def test_a_program_that_fits_has_everything():
  report = aot.compile_program(
      tpu_programs.lower(tpu_programs.looped, (tpu_programs.LAYERS, 512, 512), (2048, 512)),
      topologies.find('v3:2x2'))
  assert report.fits and report.partitions == 8
  assert report.hbm_limit > report.memory['total'] > report.memory['arguments']
  cost = tpu_programs.compiled(tpu_programs.looped).cost_analysis()
  # Of the five rounds XLA counts one.
  assert report.flops_per_core == pytest.approx(tpu_programs.LAYERS * cost['flops'])
  assert cost['optimal_seconds'] < report.estimated_step_seconds < tpu_programs.LAYERS * cost['optimal_seconds']
  assert report.schedule_seconds > 0 and not report.uncounted_loops
  assert report.collectives['all-to-all'].count == tpu_programs.LAYERS


def test_an_unrolled_program_keeps_the_estimate_of_xla():
  report = aot.compile_program(
      tpu_programs.lower(tpu_programs.unrolled, (tpu_programs.LAYERS, 512, 512), (2048, 512)),
      topologies.find('v3:2x2'))
  cost = tpu_programs.compiled(tpu_programs.unrolled).cost_analysis()
  assert report.estimated_step_seconds == cost['optimal_seconds']
  assert report.flops_per_core == cost['flops']
