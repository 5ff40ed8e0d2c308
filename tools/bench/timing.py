"""Timing programs against each other, and against what the machine can do."""

import time
from typing import Callable, Sequence

from gshard_tf import quiet

with quiet.libraries():
  # pylint: disable=g-import-not-at-top
  import jax
  import jax.numpy as jnp
  import numpy as np


class BenchError(ValueError):
  """A benchmark that cannot be run as asked."""


def device() -> jax.Device:
  """A GPU if JAX has one, else the CPU."""
  with quiet.libraries():
    try:
      return jax.devices('gpu')[0]
    except RuntimeError:
      return jax.devices('cpu')[0]


class Program:
  """A compiled function on one device that writes into the same memory at each call.

  So that a call pays for its own reads and writes, and not for the operating
  system's handing out fresh pages, as in training, where new values replace old.
  """

  def __init__(self, function: Callable, args: Sequence, where: jax.Device):
    """Compiles.

    Args:
      function: of `args`; returns a tree of arrays.
      args: trees of arrays.
      where: the device.
    """
    self._args = jax.device_put(tuple(args), where)
    results = jax.eval_shape(function, *self._args)
    self._results = jax.tree.map(
        lambda s: jax.device_put(jnp.zeros(s.shape, s.dtype), where), results)
    jitted = jax.jit(lambda old, *given: function(*given), donate_argnums=0, keep_unused=True)
    self._compiled = jitted.lower(self._results, *self._args).compile()

  def __call__(self) -> float:
    """Runs it once; returns seconds."""
    start = time.perf_counter()
    self._results = jax.block_until_ready(self._compiled(self._results, *self._args))
    return time.perf_counter() - start

  def temporary_bytes(self) -> int:
    """Memory that it needs beside arguments and results."""
    return self._compiled.memory_analysis().temp_size_in_bytes


def interleaved(programs: dict[str, Callable[[], float]], rounds: int,
                advance: Callable[[], None]) -> dict[str, np.ndarray]:
  """Times programs in turn, so that whatever else the machine does hits all alike.

  Args:
    programs: by name; each runs once and returns seconds.
    rounds: how often each is run, after once unmeasured.
    advance: called after each round.

  Returns:
    By name, float64 [rounds], seconds.
  """
  for run in programs.values():
    run()
  seconds = {name: [] for name in programs}
  for _ in range(rounds):
    for name, run in programs.items():
      seconds[name].append(run())
    advance()
  return {name: np.array(s) for name, s in seconds.items()}


def matrix_product(rows: int, inner: int, columns: int, where: jax.Device) -> tuple[Program, int]:
  """A product of two float32 matrices, and its floating-point operations."""
  a, b = jnp.ones([rows, inner]), jnp.ones([inner, columns])
  return Program(jnp.dot, (a, b), where), 2 * rows * inner * columns


def copy(size: int, where: jax.Device) -> tuple[Program, int]:
  """A copy of `size` bytes, and the bytes that it reads and writes.

  As a product with a number, since XLA leaves a bare copy to one thread.
  """
  x = jnp.ones([size // 4096, 1024])
  return Program(lambda x, one: x * one, (x, jnp.ones([])), where), 2 * x.nbytes
