"""Weights that no gradient changes, from the layer to the checkpoint: the balancing bias.

Loss-free balancing (2408.15664): after each step the bias of an expert moves by
a fixed rate towards balance.
"""

import functools

from lingvo.core import base_input_generator
from lingvo.core import cluster_factory
from lingvo.core import py_utils
import numpy as np
import pytest
import tensorflow as tf

from gshard_tf import train_step
from gshard_tf.layers import router
from gshard_tf.layers import weights
from gshard_tf.params import sharding
from gshard_tf.runtime import checkpoint
from gshard_tf.runtime import mesh as mesh_lib
from gshard_tf.runtime import program as program_lib
from tests import lowered

pytestmark = pytest.mark.slow

_RATE, _MESH = .125, (2, 1)  # a power of two: sums of it are exact
BIASES = {'encoder.blocks_1.feed_forward.router.bias'}


class Balanced(lowered.Small):
  """The tests' model with sigmoid gates, and no sparse layer in the decoder."""
  DROPOUT, DECODER_LAYERS = 0., 1

  def Router(self):
    return router.SigmoidRouter.Params().Set(bias_update_rate=_RATE)


class FixedInput(base_input_generator.BaseInputGenerator):
  """The same batch again and again, for Lingvo's trainer."""

  def _InputBatch(self):
    return py_utils.NestedMap(**{side: py_utils.NestedMap(
        {k: tf.constant(v) for k, v in arrays.items()})
                                 for side, arrays in lowered.random_batch(0).items()})


@functools.cache
def program():
  artifact = lowered.lower(_MESH, task_params=Balanced().Task(), functions=['init', 'train'])
  return program_lib.Program(artifact, mesh_lib.make(_MESH, sharding.MESH_AXES))


@functools.cache
def after_steps(steps):
  """The state after some steps on one batch, and the biases along the way."""
  batch, seed = program().put(lowered.random_batch(0)), np.int32(0)
  state, biases = program().init(seed), []
  # Machine code of less speed, sooner.
  train = program().train.lower(state, batch, seed).compile({'xla_backend_optimization_level': 0})
  for _ in range(steps):
    state, _ = train(state, batch, seed)
    biases.append({path: np.asarray(state['theta'][path]) for path in BIASES})
  return state, biases


def test_the_artifact_says_which_weights_no_gradient_changes():
  assert {w.path for w in program().artifact.weights if not w.trainable} == BIASES


def test_the_optimizer_has_no_moments_of_them():
  assert not any(path in str(program().state_shapes['optimizer']) for path in BIASES)
  assert BIASES < program().state_shapes['theta'].keys()


def test_every_step_moves_the_bias_by_the_rate():
  _, biases = after_steps(3)
  before = dict.fromkeys(BIASES, np.zeros(Balanced.NUM_EXPERTS))
  for after in biases:
    for path in BIASES:
      moved = after[path] - before[path]
      assert set(np.abs(moved)) <= {0., _RATE}
      assert moved.max() == _RATE and moved.min() == -_RATE  # some have more than the mean, some less
    before = after


def test_a_checkpoint_keeps_the_bias(tmp_path):
  state, biases = after_steps(3)
  checkpoints = checkpoint.Checkpoints(str(tmp_path), program().artifact.weights)
  checkpoints.save(3, state, {})
  restored, _ = checkpoints.restore(3, program().state_shapes, program().state_shardings)
  checkpoints.close()
  for path in BIASES:
    np.testing.assert_array_equal(restored['theta'][path], biases[-1][path])


def test_lingvos_trainer_summarises_the_experts():
  with tf.Graph().as_default(), cluster_factory.ForTestingWorker(add_summary=True):
    py_utils.GetOrCreateGlobalStepVar()
    task = Balanced().Task().Set(input=FixedInput.Params().Set(name='input')).Instantiate()
    metrics, _ = task.FPropDefaultTheta()
    summaries = [op.name for op in tf.compat.v1.get_default_graph().get_operations()
                 if op.type == 'HistogramSummary']
  layer = 'experts/encoder.blocks_1'
  assert any(f'{layer}/load' in name for name in summaries), summaries
  assert {f'{layer}/dead', f'{layer}/dropped', f'{layer}/entropy'} < metrics.keys()
  assert all(value.shape.rank == 0 for value, _ in metrics.values())


def test_lingvos_trainer_assigns_the_same_updates():
  with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    py_utils.GetOrCreateGlobalStepVar()
    task = Balanced().Task().Set(input=FixedInput.Params().Set(name='input')).Instantiate()
    task.FPropDefaultTheta()
    task.BProp()
    session.run(tf.compat.v1.global_variables_initializer())
    variables = {w.path: v for w, v in weights.pairs(weights.weight_specs(task), task.vars)}
    theta = session.run(variables)
    session.run(task.train_op)
    after = session.run({path: variables[path] for path in BIASES})
  steps = train_step.Steps(Balanced().Task(), mesh=None)
  want = tf.function(steps.train, autograph=False)(
      theta, {s: dict(b) for s, b in lowered.random_batch(0).items()}, tf.constant(0), tf.constant(0))
  assert want['updates'].keys() == BIASES and not BIASES & want['grads'].keys()
  for path in BIASES:
    assert not theta[path].any()
    np.testing.assert_array_equal(after[path], want['updates'][path])
    assert after[path].any()
