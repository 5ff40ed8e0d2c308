"""What is computed does not depend on the annotations: values and gradients, on 8 devices."""

import functools

import pytest

from gshard_tf.xla_sharding import Mesh, mesh_split
from tests import partitioned
from tests.xla_sharding import parity_cases

pytestmark = pytest.mark.slow

MESHES = {'8': Mesh((8,), ('x',)), '4x2': Mesh((4, 2), ('x', 'y'))}
SIZES = {'even': parity_cases.EVEN, 'uneven': parity_cases.UNEVEN}
# Sums of up to 16 * 16 products of float32 (2^-24 each), by parts and in another
# order than the float64 reference, through up to three nonlinear steps.
TOLERANCE = 2e-5


def annotator(mesh):
  def on(x, *axes):
    names = mesh.axis_names if mesh else ()
    return mesh_split(x, mesh, [a if a in names else None for a in axes])
  return on


@functools.cache
def reference(name, sizes):
  case = next(c for c in parity_cases.CASES if c.name == name)
  return partitioned.unsharded(functools.partial(case.function, annotator(None)),
                               *parity_cases.arguments(case, SIZES[sizes]),
                               jit_compile=case.compiled_reference)


@pytest.mark.parametrize('mesh, partitioner', [
    ('8', 'gspmd'), ('4x2', 'gspmd'), ('4x2', 'shardy')])
@pytest.mark.parametrize('sizes', SIZES)
@pytest.mark.parametrize('case', parity_cases.CASES, ids=lambda case: case.name)
def test_sharded_equals_unsharded(case, sizes, mesh, partitioner, use_partitioner):
  use_partitioner(partitioner)
  args = parity_cases.arguments(case, SIZES[sizes])
  function = functools.partial(case.function, annotator(MESHES[mesh]))
  run = partitioned.compile_on(
      MESHES[mesh], functools.partial(partitioned.value_and_gradients, function), *args)
  partitioned.assert_close(run(*args), reference(case.name, sizes), TOLERANCE)
