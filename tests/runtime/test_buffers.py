"""Reading where the TPU compiler lays what, of programs that fit and that do not."""

import tempfile

import jax
import jax.numpy as jnp
import pytest

from gshard_tf.runtime import aot
from gshard_tf.runtime import buffers
from gshard_tf.runtime import topologies
from tests.runtime import tpu_programs


def read(lowered):
  """The memory of a program, and what it compiles to."""
  with tempfile.TemporaryDirectory() as folder:
    compiled = lowered.compile(buffers.OPTIONS | {'xla_dump_to': folder})
    return buffers.read(folder), compiled


def test_sizes_are_those_that_xla_tells():
  memory, compiled = read(tpu_programs.lower(
      jax.grad(tpu_programs.looped), (tpu_programs.LAYERS, 512, 512), (2048, 512)))
  told = compiled.memory_analysis()
  assert memory.arguments == told.argument_size_in_bytes
  # XLA counts odd small pieces as well, a few KiB.
  assert memory.temporaries == pytest.approx(told.temp_size_in_bytes, rel=.02)
  assert memory.total >= memory.arguments + memory.temporaries
  stack = tpu_programs.LAYERS * 512 * 512 * 4
  first = memory.buffers[0]
  assert first.bytes == stack and first.shape == f'f32[{tpu_programs.LAYERS},512,512]'
  assert [b.bytes for b in memory.buffers] == sorted((b.bytes for b in memory.buffers), reverse=True)
  assert {b.kind for b in memory.buffers} == {'argument', 'output', 'temporary'}


def test_what_is_held_for_the_backward_pass_is_there_together():
  rows, width, layers = 8 * 4096, 256, 6
  def loss(w, x):
    for _ in range(layers):
      x = jnp.sin(x @ w)
    return jnp.sum(x)
  memory, _ = read(tpu_programs.lower(jax.grad(loss), (width, width), (rows, width)))
  held = [b for b in memory.buffers if b.kind == 'temporary' and b.bytes >= rows // 8 * width * 2]
  # The input of each sine, or its cosine; the last may be used at once.
  assert len(held) >= layers - 1
  assert sum(b.bytes for b in held) <= memory.temporaries


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
