"""Tests of gshard_tf.runtime.checkpoint."""

import dataclasses
import shutil

import jax
import numpy as np
from orbax.checkpoint import utils as orbax_utils
import pytest

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
  checkpoints = checkpoint.Checkpoints(folder)
  checkpoints.save(5, state, PLACE)
  checkpoints.close()
  return state


@pytest.mark.parametrize('mesh_shape', [(8, 1), (4, 2), (2, 1)])
def test_restores_onto_another_mesh(folder, saved, mesh_shape):
  shapes, shardings = state_on(mesh_shape)
  checkpoints = checkpoint.Checkpoints(folder)
  assert checkpoints.latest_step() == 5
  state, place = checkpoints.restore(5, shapes, shardings)
  checkpoints.close()
  assert place == PLACE
  assert_same(state, saved)
  assert jax.tree.map(lambda x: x.sharding, state) == shardings


def test_restores_the_weights_alone(folder, saved):
  shapes, shardings = ({'theta': tree['theta']} for tree in state_on((2, 1)))
  checkpoints = checkpoint.Checkpoints(folder)
  state, place = checkpoints.restore(5, shapes, shardings)
  checkpoints.close()
  assert place == PLACE
  assert_same(state, {'theta': saved['theta']})


def test_keeps_the_newest_three(folder, saved):
  checkpoints = checkpoint.Checkpoints(folder)
  small = {'theta': {'w': saved['step']}}
  for step in (6, 7, 8):
    checkpoints.save(step, small, PLACE | {'position': step})
  checkpoints.close()
  checkpoints = checkpoint.Checkpoints(folder)
  where = jax.tree.map(lambda x: x.sharding, small)
  for step in (6, 7, 8):
    assert checkpoints.restore(step, small, where)[1]['position'] == step
  with pytest.raises(FileNotFoundError):
    checkpoints.restore(5, small, where)
  checkpoints.close()


def test_a_step_that_is_there_is_not_written_again(folder, saved):
  checkpoints = checkpoint.Checkpoints(folder)
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
  checkpoints = checkpoint.Checkpoints(folder)
  assert checkpoints.latest_step() == 5
  assert_same(checkpoints.restore(5, *state_on((8, 1)))[0], saved)
  checkpoints.save(6, saved, PLACE | {'position': 15})
  checkpoints.close()
  checkpoints = checkpoint.Checkpoints(folder)
  assert checkpoints.latest_step() == 6
  assert checkpoints.restore(6, *state_on((8, 1)))[1]['position'] == 15
  checkpoints.close()


def test_an_empty_folder_has_no_step(folder):
  checkpoints = checkpoint.Checkpoints(folder)
  assert checkpoints.latest_step() is None
  checkpoints.close()
