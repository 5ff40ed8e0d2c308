"""That the devices share the work: what stands in partitioned programs."""

import re

import numpy as np
import pytest
import tensorflow as tf

from gshard_tf.xla_sharding import Mesh, mesh_split, split
from tests import partitioned

pytestmark = pytest.mark.slow

MESH = Mesh((4, 2), ('x', 'y'))
COLLECTIVES = ('all-gather', 'all-reduce', 'all-to-all', 'collective-permute', 'reduce-scatter')


def random(*shape):
  return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def program(function, *args, mesh=MESH):
  """The text, and which collectives are in it."""
  text = partitioned.compile_on(mesh, function, *args, split_results=True).as_text()
  return text, {kind for kind in COLLECTIVES if re.search(rf' {kind}(-start)?\(', text)}


@pytest.fixture(autouse=True, params=['shardy', 'gspmd'])
def _partitioner(request, use_partitioner):
  use_partitioner(request.param)


def test_a_halo_is_exchanged():
  def convolve(p, q):
    p = mesh_split(p, MESH, (None, 'x', None, None))
    return mesh_split(tf.nn.conv2d(p, q, 1, 'SAME'), MESH, (None, 'x', None, None))
  text, found = program(convolve, random(1, 16, 8, 3), random(3, 3, 3, 5))
  assert found == {'collective-permute'}
  assert 'f32[1,6,8,3]' in text and 'f32[1,4,8,5]' in text  # four rows with one on either side


def test_a_contracted_dimension_is_summed():
  def contract(p, q):
    return mesh_split(tf.einsum('ab,bc->ac', mesh_split(p, MESH, (None, 'x')),
                                mesh_split(q, MESH, ('x', None))), MESH, (None, None))
  text, found = program(contract, random(6, 8), random(8, 10))
  assert found == {'all-reduce'}
  assert re.search(r'f32\[6,2\]', text) and re.search(r'f32\[2,10\]', text)


def test_a_batch_dimension_needs_nothing():
  def batch(p, q):
    return mesh_split(tf.einsum('gab,gbc->gac', mesh_split(p, MESH, ('x', None, None)),
                                mesh_split(q, MESH, ('x', None, None))), MESH, ('x', None, None))
  text, found = program(batch, random(8, 3, 5), random(8, 5, 7))
  assert not found
  assert 'f32[2,3,7]' in text and 'f32[8,3,7]' not in text


def test_a_change_of_dimension_is_an_all_to_all():
  def change(p):
    return split(tf.sin(split(p, 0, 8)), 1, 8)
  _, found = program(change, random(16, 24), mesh=Mesh((8,), ('d',)))
  assert found == {'all-to-all'}


def test_an_uneven_dimension_is_shared_out():
  """7 heads on 4 devices: two for each, the last one padded."""
  def heads(p, q):
    p = mesh_split(p, MESH, (None, 'x', None))
    return mesh_split(tf.einsum('bnk,nkm->bnm', p, q), MESH, (None, 'x', None))
  text = partitioned.compile_on(MESH, heads, random(3, 7, 5), random(7, 5, 6)).as_text()
  products = re.findall(r'f32\[([\d,]+)\]\S* dot\(', text)
  assert products == ['2,3,6']
