"""Tests of gshard_tf.runtime.checkpoint."""

import dataclasses
import shutil
from typing import NamedTuple

import jax
import numpy as np
from orbax.checkpoint import utils as orbax_utils
import pytest

from gshard_tf import artifact as artifact_lib
from gshard_tf.runtime import checkpoint
from gshard_tf.runtime import mesh as mesh_lib
from gshard_tf.runtime import program as program_lib
from tests import lowered

PLACE = {'position': 12, 'seed': 3}


def state_on(mesh_shape):
  """Shapes and shardings of the model's state on a mesh; nothing is lowered for it."""
  artifact = dataclasses.replace(lowered.artifact((2, 1)), mesh_shape=mesh_shape)
  program = program_lib.Program(artifact, mesh_lib.make(mesh_shape, artifact.mesh_axes))
  return program.state_shapes, program.state_shardings


def random_state(mesh_shape, seed=0):
  rng = np.random.default_rng(seed)
  shapes, shardings = state_on(mesh_shape)
  draw = lambda s: rng.integers(-1000, 1000, s.shape).astype(s.dtype)
  return jax.device_put(jax.tree.map(draw, shapes), shardings)


def assert_same(tree, other):
  assert jax.tree.structure(tree) == jax.tree.structure(other)
  jax.tree.map(np.testing.assert_array_equal, tree, other)


@pytest.fixture(name='folder')
def _folder(tmp_path):
  return str(tmp_path / 'checkpoints')


@pytest.fixture(name='saved')
def _saved(folder):
  """A folder with a checkpoint of step 5, and the state, of eight devices."""
  state = random_state((8, 1))
  checkpoints = checkpoint.Checkpoints(folder, [])
  checkpoints.save(5, state, PLACE)
  checkpoints.close()
  return state


@pytest.mark.parametrize('mesh_shape', [(8, 1), (4, 2), (2, 1)])
def test_restores_onto_another_mesh(folder, saved, mesh_shape):
  shapes, shardings = state_on(mesh_shape)
  checkpoints = checkpoint.Checkpoints(folder, [])
  assert checkpoints.latest_step() == 5
  state, place = checkpoints.restore(5, shapes, shardings)
  checkpoints.close()
  assert place == PLACE
  assert_same(state, saved)
  assert jax.tree.map(lambda x: x.sharding, state) == shardings


def test_restores_the_weights_alone(folder, saved):
  shapes, shardings = ({'theta': tree['theta']} for tree in state_on((2, 1)))
  checkpoints = checkpoint.Checkpoints(folder, [])
  state, place = checkpoints.restore(5, shapes, shardings)
  checkpoints.close()
  assert place == PLACE
  assert_same(state, {'theta': saved['theta']})


def test_keeps_the_newest_three(folder, saved):
  checkpoints = checkpoint.Checkpoints(folder, [])
  small = {'theta': {'w': saved['step']}}
  for step in (6, 7, 8):
    checkpoints.save(step, small, PLACE | {'position': step})
  checkpoints.close()
  checkpoints = checkpoint.Checkpoints(folder, [])
  where = jax.tree.map(lambda x: x.sharding, small)
  for step in (6, 7, 8):
    assert checkpoints.restore(step, small, where)[1]['position'] == step
  with pytest.raises(FileNotFoundError):
    checkpoints.restore(5, small, where)
  checkpoints.close()


def test_a_step_that_is_there_is_not_written_again(folder, saved):
  checkpoints = checkpoint.Checkpoints(folder, [])
  checkpoints.save(5, random_state((8, 1), seed=1), {'position': 0})
  state, place = checkpoints.restore(5, *state_on((8, 1)))
  checkpoints.close()
  assert place == PLACE
  assert_same(state, saved)


def test_an_interrupted_checkpoint_is_ignored(folder, saved, tmp_path):
  """Until it is complete a checkpoint has another name; a crash leaves that."""
  half = tmp_path / 'checkpoints' / f'6{orbax_utils.TMP_DIR_SUFFIX}'
  shutil.copytree(tmp_path / 'checkpoints' / '5', half)
  shutil.rmtree(half / 'position')
  checkpoints = checkpoint.Checkpoints(folder, [])
  assert checkpoints.latest_step() == 5
  assert_same(checkpoints.restore(5, *state_on((8, 1)))[0], saved)
  checkpoints.save(6, saved, PLACE | {'position': 15})
  checkpoints.close()
  checkpoints = checkpoint.Checkpoints(folder, [])
  assert checkpoints.latest_step() == 6
  assert checkpoints.restore(6, *state_on((8, 1)))[1]['position'] == 15
  checkpoints.close()


def test_an_empty_folder_has_no_step(folder):
  checkpoints = checkpoint.Checkpoints(folder, [])
  assert checkpoints.latest_step() is None
  checkpoints.close()


STACKED = [
    artifact_lib.Weight('blocks_0::2.wi', (3, 8, 4), 'float32', ((), ('expert',), ()), 'mh',
                        ('blocks_0.wi', 'blocks_2.wi', 'blocks_4.wi')),
    artifact_lib.Weight('norm', (4,), 'float32', ((),), 'm')]


class Moments(NamedTuple):
  """As an optimiser's state: not of weights alone, and moments of fewer dimensions."""
  count: jax.Array
  rows: dict


def stacked_state(mesh, seed=0):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  state = dict(
      theta={'blocks_0::2.wi': draw(3, 8, 4), 'norm': draw(4)}, step=np.int32(5),
      optimizer=(Moments(np.int32(2), {'blocks_0::2.wi': draw(3, 8), 'norm': draw(1)}), ()))
  axes = dict(
      theta={'blocks_0::2.wi': ((), ('expert',), ()), 'norm': ((),)}, step=(),
      optimizer=(Moments((), {'blocks_0::2.wi': ((), ('expert',)), 'norm': ((),)}), ()))
  put = lambda x, a: jax.device_put(x, mesh_lib.sharding(mesh, a))
  return jax.tree.map(put, state, axes)


def plain_state(state):
  """The same state with a weight for each layer."""
  names = STACKED[0].layers
  split = lambda d: {n: d['blocks_0::2.wi'][i] for i, n in enumerate(names)} | {'norm': d['norm']}
  count, rows = state['optimizer'][0]
  return state | dict(theta=split(state['theta']),
                      optimizer=(Moments(count, split(rows)), ()))


@pytest.mark.parametrize('saved_as', ['stacked', 'plain'])
@pytest.mark.parametrize('restored_as', ['stacked', 'plain'])
def test_stacked_weights_are_saved_layer_by_layer(folder, saved_as, restored_as):
  mesh = mesh_lib.make((4, 1), ('expert', 'model'))
  stacked = stacked_state(mesh)
  states = {'stacked': (stacked, STACKED), 'plain': (plain_state(stacked), [])}
  state, weights = states[saved_as]
  checkpoints = checkpoint.Checkpoints(folder, weights)
  checkpoints.save(5, state, PLACE)
  checkpoints.close()
  want, weights = states[restored_as]
  checkpoints = checkpoint.Checkpoints(folder, weights)
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), want)
  where = jax.tree.map(lambda x: x.sharding, want)
  got, _ = checkpoints.restore(5, shapes, where)
  checkpoints.close()
  assert_same(got, want)
  assert jax.tree.map(lambda x: x.sharding, got) == where
