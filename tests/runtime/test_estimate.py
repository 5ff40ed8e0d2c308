"""Work of compiled programs, against XLA's own counts and against programs without loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gshard_tf.runtime import collectives
from gshard_tf.runtime import estimate
from gshard_tf.runtime import hlo
from gshard_tf.runtime import topologies
from tests.runtime import tpu_programs

CORES, ROUNDS = 8, 20
# What libtpu counts with: 61.4 TFLOP/s, and 400 GiB/s. Found by asking it for one
# product and one sum; the public figures are 61.5 TFLOP/s and 450 GB/s.
RATES = 61.4e12, 400 * 2**30


def work(compiled):
  return estimate.work(hlo.parse(compiled.as_text()))


LOOPED, UNROLLED = tpu_programs.looped, tpu_programs.unrolled
GRADIENTS = [jax.grad(f, argnums=(0, 1)) for f in (LOOPED, UNROLLED)]


@pytest.mark.parametrize('function', [LOOPED, UNROLLED, *GRADIENTS],
                         ids=['looped', 'unrolled', 'looped, gradient', 'unrolled, gradient'])
def test_counting_loops_once_gives_what_xla_says(function):
  compiled = tpu_programs.compiled(function)
  cost = compiled.cost_analysis()
  found = work(compiled)
  # Its bytes of odd instructions, such as constants, are not ours.
  assert estimate.optimal_seconds(found, *RATES, once=True) == pytest.approx(
      cost['optimal_seconds'], rel=.03)
  # XLA counts the elementwise operations as well, here one for 2 * WIDTH of a product.
  assert sum(w.flops for w in found) == pytest.approx(cost['flops'], rel=.02)


@pytest.mark.parametrize('gradient', [False, True])
def test_a_loop_does_what_its_rounds_do_one_after_another(gradient):
  loop, plain = map(tpu_programs.compiled, GRADIENTS if gradient else (LOOPED, UNROLLED))
  total = lambda compiled: sum(w.times * w.flops for w in work(compiled))
  assert total(loop) == total(plain)
  if not gradient:
    products = 2 * tpu_programs.ROWS * tpu_programs.WIDTH**2 * tpu_programs.LAYERS
    assert total(plain) == products / CORES
  kinds = [collectives.totals(collectives.read(hlo.parse(c.as_text()))) for c in (loop, plain)]
  assert kinds[0]['all-to-all'].count == kinds[1]['all-to-all'].count > 0
  assert max(w.times for w in work(loop)) == tpu_programs.LAYERS
  assert max(w.times for w in work(plain)) == 1


def heavy(w, x):
  """One wide layer again and again: what a loop carries along is little beside it."""
  return jax.lax.fori_loop(0, ROUNDS, lambda _, x: jnp.tanh(x @ w) @ w.T, x)


def heavy_unrolled(w, x):
  for _ in range(ROUNDS):
    x = jnp.tanh(x @ w) @ w.T
  return x


def test_the_estimates_with_and_without_a_loop_agree():
  width, hidden, rows = 256, 8192, 256
  loop, plain = (work(tpu_programs.lower(f, (width, hidden), (CORES * rows, width)).compile())
                 for f in (heavy, heavy_unrolled))
  topology = topologies.find('v3:2x2')
  for seconds in (lambda w: estimate.optimal_seconds(w, *RATES),
                  lambda w: estimate.schedule_seconds(w, [], topology)):
    # What remains: the loop converts its weight once and copies its rows each time.
    assert seconds(loop) == pytest.approx(seconds(plain), rel=.1)
  # The compiler's cycles are above the limit of the matrix units, not far.
  limit = ROUNDS * 2 * 2 * rows * width * hidden / topology.generation.flops
  assert limit < estimate.schedule_seconds(plain, [], topology) < 2 * limit


def test_loops_in_loops_multiply():
  def function(w, x):
    inner = lambda x: jax.lax.fori_loop(0, 3, lambda _, x: jnp.tanh(x @ w), x)
    return jax.lax.fori_loop(2, 6, lambda _, x: inner(x) + 1., x)
  found = work(tpu_programs.lower(function, (128, 128), (8 * 128, 128)).compile())
  products = [w for w in found if w.flops]
  assert {w.times for w in products} == {12}
  assert sum(w.times * w.flops for w in products) == 12 * 2 * 128**3


def test_a_loop_of_unknown_length_counts_once_and_is_told():
  def function(w, x):
    return jax.lax.while_loop(lambda x: jnp.max(x) < 7., lambda x: x @ w, x)
  text = tpu_programs.lower(function, (128, 128), (8 * 128, 128)).compile().as_text()
  module = hlo.parse(text)
  assert estimate.uncounted_loops(module) == 1
  assert {w.times for w in estimate.work(module)} == {1}
  assert estimate.uncounted_loops(hlo.parse(tpu_programs.compiled(LOOPED).as_text())) == 0


def attention(x, y):
  """float32 [B, L, N, K] twice -> [B, L, N, K]; products over batches of matrices."""
  scores = jnp.einsum('blnk,btnk->bnlt', x, y)
  return jnp.einsum('bnlt,btnk->blnk', jax.nn.softmax(scores), y)


def test_batches_of_products_have_the_operations_of_each():
  mesh = tpu_programs.mesh()
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('d'))
  shape = jax.ShapeDtypeStruct((16, 128, 4, 64), np.float32)
  compiled = jax.jit(attention, in_shardings=rows).lower(shape, shape).compile()
  assert sum(w.flops for w in work(compiled)) == 2 * 2 * (16 // CORES) * 4 * 128 * 128 * 64


def test_padding_counts_as_bytes():
  shape, = hlo.parse(
      'ENTRY %e () -> f32[] {\n  ROOT %c = bf16[3,5,2]{2,1,0:T(8,128)(2,1)} copy(%x)\n}\n'
  ).computations['e']['c'].shapes
  assert shape.bytes == 3 * 5 * 2 * 2
  assert shape.padded_bytes == 3 * 8 * 128 * 2
  assert shape == hlo.Shape('bf16', (3, 5, 2))


@pytest.mark.parametrize('layout, padded', [
    ('{0,1:T(8,128)}', 128 * 8 * 4), ('{1,0:T(8,128)S(1)}', 16 * 128 * 4), ('{1,0}', 10 * 8 * 4),
    ('', 10 * 8 * 4)])
def test_the_minor_dimension_of_the_layout_is_padded_to_the_width_of_the_tile(layout, padded):
  i = hlo.parse(f'ENTRY %e () -> f32[] {{\n  ROOT %c = f32[10,8]{layout} copy(%x)\n}}\n')
  assert i.computations['e']['c'].padded_bytes == padded
