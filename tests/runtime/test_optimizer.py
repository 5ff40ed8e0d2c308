"""Tests of gshard_tf.runtime.optimizer: Lingvo's own optimiser is the reference."""

import dataclasses
import itertools

import jax
from lingvo.core import py_utils
import numpy as np
import optax
import pytest
import tensorflow as tf

from gshard_tf import artifact as artifact_lib
from gshard_tf import lowering
from gshard_tf.runtime import mesh as mesh_lib
from gshard_tf.runtime import optimizer as optimizer_lib
from gshard_tf.runtime import program as program_lib
from model_registry import catalog
from tests import lowered

STEPS = 10
SHAPES = {
    'vector': (24,),
    'small': (16, 40),  # below 128: not factored
    'wide': (130, 256),
    'tall': (256, 130),
    'square': (128, 128),
    'experts': (4, 128, 160),  # factored over the two largest dimensions
    'experts_down': (4, 160, 128),
}


WEIGHTS = [
    artifact_lib.Weight(name, shape, 'float32', ((),) * len(shape),
                        'e..' if name.startswith('experts') else '.' * len(shape))
    for name, shape in SHAPES.items()]


def settings(warmup_steps):
  """Lingvo's Params of the demo's training, and the runtime's settings from them."""
  train = type('Demo', (catalog.Demo,), {'WARMUP_STEPS': warmup_steps})().Task().train
  return train, lowering.optimizer_settings(train)


def draw(seed, scale):
  rng = np.random.default_rng(seed)
  return {name: (scale * rng.standard_normal(shape)).astype(np.float32)
          for name, shape in SHAPES.items()}


def lingvo_weights(train, start, grads):
  """The weights after each step of Lingvo's optimiser in a tf.Graph."""
  with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    step = py_utils.GetOrCreateGlobalStepVar()
    weights = {name: tf.compat.v1.get_variable(name, initializer=w, use_resource=True)
               for name, w in start.items()}
    fed = {name: tf.compat.v1.placeholder(tf.float32, w.shape) for name, w in start.items()}
    schedule = train.lr_schedule.Instantiate()
    rate = train.learning_rate * schedule.Value()
    apply = train.optimizer.Instantiate().GetOptimizer(rate).apply_gradients(
        [(fed[name], weights[name]) for name in weights])
    with tf.control_dependencies([apply]):
      update = step.assign_add(1)
    session.run(tf.compat.v1.global_variables_initializer())
    for gradient in grads:
      session.run(update, {fed[name]: g for name, g in gradient.items()})
      yield session.run(weights)


# Few warm-up steps: large updates, and the peak of the schedule within the ten.
@pytest.mark.parametrize('warmup_steps', [4, catalog.Demo.WARMUP_STEPS])
def test_adafactor_equals_lingvos(warmup_steps):
  train, ours = settings(warmup_steps)
  start = draw(0, .3)
  # Of very different sizes, so that the clipping of updates both acts and does not.
  grads = [draw(seed, 10. ** (seed % 3 - 2)) for seed in range(1, STEPS + 1)]
  optimizer = optimizer_lib.adafactor(ours, WEIGHTS)
  weights, state = start, optimizer.init(start)
  update = jax.jit(optimizer.update)
  for gradient, want in zip(grads, lingvo_weights(train, start, grads), strict=True):
    updates, state = update(gradient, state, weights)
    weights = optax.apply_updates(weights, updates)
    for name in SHAPES:
      moved = np.linalg.norm(want[name] - start[name])
      assert moved > 0
      # Relative to the way from the start, not to the weights, which hardly move:
      # 1e-5 is rounding, in means over the elements that each sums in its order
      # and in a difference of weights.
      assert np.linalg.norm(weights[name] - want[name]) < 1e-5 * max(
          moved, .1 * np.linalg.norm(want[name])), name


def test_learning_rate_equals_lingvos():
  train, ours = settings(400)
  steps = [0, 1, 2, 10, 399, 400, 401, 500, 750, 10_000, 1_000_000]
  with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    step = tf.compat.v1.placeholder(tf.int64, [])
    with py_utils.GlobalStepContext(step):
      rate = train.learning_rate * train.lr_schedule.Instantiate().Value()
    want = [session.run(rate, {step: s}) for s in steps]
  schedule = jax.jit(optimizer_lib.learning_rate(ours))
  got = [schedule(np.int32(s)) for s in steps]
  np.testing.assert_allclose(got, want, rtol=1e-6)  # single roundings of float32
  assert max(got) == got[steps.index(400)] == pytest.approx(catalog.Demo.LEARNING_RATE / 400 ** .5)


def test_moments_lie_as_their_weights():
  mesh = mesh_lib.make((4, 2), ('expert', 'model'))
  axes = {'vector': ((),), 'small': (('model',), ()), 'wide': ((), ('model',)),
          'tall': (('expert', 'model'), ()), 'square': ((), ()),
          'experts': (('expert',), (), ('model',)), 'experts_down': (('expert',), ('model',), ())}
  weights = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in SHAPES.items()}
  shardings = {name: mesh_lib.sharding(mesh, axes[name]) for name in SHAPES}
  optimizer = optimizer_lib.adafactor(settings(400)[1], WEIGHTS)
  placed = optimizer_lib.state_shardings(optimizer, weights, shardings)
  moments = jax.eval_shape(optimizer.init, weights)
  assert jax.tree.structure(placed) == jax.tree.structure(moments)
  factored, shapes = placed[0], moments[0]

  def shard(moment, name):
    return getattr(factored, moment)[name].shard_shape(getattr(shapes, moment)[name].shape)

  whole = {name: {m: getattr(shapes, m)[name].shape for m in ('v_row', 'v_col', 'v')}
           for name in SHAPES}
  for name in ('vector', 'small'):  # not factored
    assert shard('v', name) == shardings[name].shard_shape(SHAPES[name])
  for name, shape in SHAPES.items():
    if whole[name]['v'] == shape:
      continue
    parts = dict(zip(shape, np.divide(shape, shardings[name].shard_shape(shape)).astype(int)))
    for moment in ('v_row', 'v_col'):
      assert shard(moment, name) == tuple(n // parts[n] for n in whole[name][moment]), name
  assert whole['experts']['v_row'] == (4, 128) and shard('v_row', 'experts') == (1, 128)
  assert whole['experts']['v_col'] == (4, 160) and shard('v_col', 'experts') == (1, 80)


def test_a_stacked_weight_is_updated_as_its_layers_are():
  """Several steps on three layers at once and one by one."""
  ours, shape = settings(4)[1], (4, 128, 160)
  name = lambda layer: f'block_{layer}.wi'
  stacked = [artifact_lib.Weight('wi', (3, *shape), 'float32', ((),) * 4, 'emh', tuple(map(name, range(3))))]
  plain = [artifact_lib.Weight(name(i), shape, 'float32', ((),) * 3, 'emh') for i in range(3)]
  rng = np.random.default_rng(0)
  # Layers of different sizes, each to be clipped and scaled by its own.
  draw_layers = lambda: rng.standard_normal((3, *shape)).astype(np.float32) * np.float32(
      [.1, 1., 30.])[:, None, None, None]
  start, gradients = draw_layers(), [draw_layers() for _ in range(3)]

  def train(weights, split):
    optimizer = optimizer_lib.adafactor(ours, weights)
    theta, update = split(start), jax.jit(optimizer.update)
    state = optimizer.init(theta)
    for gradient in gradients:
      changes, state = update(split(gradient), state, theta)
      theta = optax.apply_updates(theta, changes)
    return theta

  one = train(stacked, lambda x: {'wi': x})['wi']
  each = train(plain, lambda x: {name(i): x[i] for i in range(3)})
  for i in range(3):
    np.testing.assert_allclose(one[i], each[name(i)], rtol=1e-6)  # order of sums


def test_experts_are_factored_one_by_one_whatever_their_number():
  weights = [artifact_lib.Weight('wi', (300, 128, 160), 'float32', ((),) * 3, 'emh')]
  optimizer = optimizer_lib.adafactor(settings(4)[1], weights)
  moments = jax.eval_shape(optimizer.init, {'wi': jax.ShapeDtypeStruct((300, 128, 160), np.float32)})[0]
  assert {moments.v_row['wi'].shape, moments.v_col['wi'].shape} == {(300, 128), (300, 160)}


def test_state_of_a_program_takes_each_device_its_share():
  """Factored from dimension 16 up, so that the tiny model's experts are."""
  artifact = lowered.artifact((2, 1))
  artifact = dataclasses.replace(
      artifact, optimizer=artifact.optimizer | {'min_dim_size_to_factor': 16})
  program = program_lib.Program(artifact, lowered.program((2, 1)).mesh)
  small = lowered.Small
  experts = [w.path for w in artifact.weights
             if w.shape == (small.NUM_EXPERTS, small.MODEL_DIM, small.HIDDEN_DIM)]
  assert len(experts) == lowered.SPARSE_LAYERS
  moments, placed = (tree['optimizer'][0] for tree in (program.state_shapes,
                                                       program.state_shardings))
  for moment, name in itertools.product(('v_row', 'v_col'), experts):
    shape = getattr(moments, moment)[name].shape
    assert shape[0] == small.NUM_EXPERTS and len(shape) == 2
    assert getattr(placed, moment)[name].shard_shape(shape) == (shape[0] // 2, shape[1])
