"""Reading where the TPU compiler lays what."""

import tempfile

import jax
import jax.numpy as jnp
import pytest

from gshard_tf.runtime import buffers
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
