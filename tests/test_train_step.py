"""The train step with its layers in a loop and its batch in parts."""

import numpy as np
import pytest
import tensorflow as tf

from gshard_tf import lowering
from gshard_tf import train_step
from tests import lowered

pytestmark = pytest.mark.slow


def train(batch, theta=None, **constants):
  """What the step returns for a variant of the tiny model, by the layers' own paths."""
  steps = train_step.Steps(lowered.task(**constants), mesh=None)
  step = tf.function(steps.train, jit_compile=True, autograph=False)
  if theta is None:
    theta = tf.function(steps.init, jit_compile=True, autograph=False)(tf.constant(0))
  else:
    theta = {w.path: np.stack([theta[p] for p in w.layers]) if w.layers else theta[w.path]
             for w in steps.specs}
  out = step(theta, batch, tf.constant(3), tf.constant(7))
  by_layer = lambda tree: {path: value for w in steps.specs if w.path in tree for path, value in (
      zip(w.layers, tree[w.path].numpy()) if w.layers else [(w.path, tree[w.path].numpy())])}
  return by_layer(theta if isinstance(next(iter(theta.values())), tf.Tensor) else {}), by_layer(
      out['grads']), {k: v.numpy() for k, v in out['metrics'].items()}


def assert_close(grads, want, rtol):
  assert grads.keys() == want.keys()
  for path, w in want.items():
    np.testing.assert_allclose(grads[path], w, atol=rtol * np.abs(w).max(), err_msg=path)


def test_a_loop_over_layers_draws_and_computes_the_same():
  """Dropout and random routing included, and the initial weights."""
  deep = dict(ENCODER_LAYERS=4, DECODER_LAYERS=4, DROPOUT=.1)
  batch = lowered.random_batch(0)
  theta, grads, metrics = train(batch, **deep)
  looped_theta, looped_grads, looped = train(batch, **deep, REPEAT=True, REMAT='block')
  assert theta.keys() == looped_theta.keys()
  for path, w in theta.items():
    np.testing.assert_array_equal(looped_theta[path], w, err_msg=path)
  assert looped.keys() == metrics.keys()
  for name, value in metrics.items():
    np.testing.assert_allclose(looped[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
  assert_close(looped_grads, grads, 1e-5)  # sums of float32 in another order


def test_a_loop_over_layers_measures_the_languages_of_every_layer():
  constants = dict(ENCODER_LAYERS=4, DECODER_LAYERS=2)
  batch, results = lowered.held_out_batch(0), []
  for more in ({}, dict(REPEAT=True, REMAT='block')):
    task = lowered.task(**constants, **more).Set(num_languages=len(lowered.LANGUAGES))
    steps = train_step.Steps(task, mesh=None)
    theta = tf.function(steps.init, jit_compile=True, autograph=False)(tf.constant(0))
    results.append(tf.function(steps.evaluate, jit_compile=True, autograph=False)(theta, batch))
  unrolled, looped = results
  assert unrolled.keys() == looped.keys()
  for layer in ('encoder.blocks_1', 'encoder.blocks_3', 'decoder.blocks_1'):
    name = f'experts/{layer}/load_by_language'
    np.testing.assert_allclose(looped[name], unrolled[name], rtol=1e-5, atol=1e-6)
  first, second = (unrolled[f'experts/encoder.blocks_{i}/load'][0] for i in (1, 3))
  assert np.abs(first - second).max() > .01


def test_microbatches_have_the_gradient_of_the_batch():
  """Dense, since the groups of a microbatch are smaller and drop other tokens."""
  constants = dict(ENCODER_LAYERS=2, DECODER_LAYERS=2, NUM_EXPERTS=0, DROPOUT=0.)
  batch = lowered.random_batch(0)
  _, grads, metrics = train(batch, **constants)
  _, parts_grads, parts = train(batch, **constants, MICROBATCHES=4)
  np.testing.assert_allclose(parts['loss'], metrics['loss'], rtol=1e-6)
  np.testing.assert_allclose(parts['nll'], metrics['nll'], rtol=1e-6)
  assert_close(parts_grads, grads, 1e-5)


def test_microbatches_have_the_experts_metrics_of_the_batch():
  """With room for all no token's experts depend on those of its group."""
  changes = dict(DROPOUT=0., SECOND_EXPERT='all', CAPACITY_FACTOR=None)
  batch, theta = lowered.random_batch(0), lowered.theta()
  batch['src']['segment_ids'][::2, 5:] = 0  # microbatches of different numbers of tokens
  whole, parts = (
      tf.function(train_step.Steps(lowered.task(**changes, MICROBATCHES=n), mesh=None).train,
                  autograph=False)(theta, batch, tf.constant(3), tf.constant(7))['metrics']
      for n in (1, 2))
  names = {f'experts/{layer}.blocks_1/{name}' for layer in ('encoder', 'decoder') for name in (
      'load', 'dropped', 'bypassed', 'entropy', 'first_gate', 'second_gate', 'z_loss')}
  assert names < whole.keys() == parts.keys()
  for name in names - {n for n in names if n.endswith('_loss')}:  # a mean of means
    np.testing.assert_allclose(parts[name], whole[name], rtol=1e-5, atol=1e-7, err_msg=name)
    assert name.endswith(('dropped', 'bypassed')) != np.all(whole[name])


def test_bfloat16_activations_give_nearly_the_same_loss():
  """Eight bits of mantissa: 2^-8 of a logit is some thousandths of a nat."""
  constants = dict(DROPOUT=0., SECOND_EXPERT='all')
  batch = lowered.random_batch(0)
  _, grads, metrics = train(batch, **constants)
  _, rounded_grads, rounded = train(batch, **constants, FPROP_DTYPE='bfloat16')
  assert 0 < abs(rounded['nll'] - metrics['nll']) < .02
  assert all(g.dtype == np.float32 for g in rounded_grads.values())
  for path, g in grads.items():
    if np.linalg.norm(g):
      cosine = np.vdot(rounded_grads[path], g) / np.linalg.norm(g) / np.linalg.norm(rounded_grads[path])
      assert cosine > .95, path


@pytest.mark.parametrize('constants, message', [
    (dict(REPEAT=True), 'a loop over blocks recomputes them; set remat to block'),
    (dict(REPEAT=True, REMAT='block', ENCODER_LAYERS=3), '3 blocks do not repeat after period=2'),
    (dict(REMAT='all'), "remat is 'all'; choose none or block")])
def test_what_a_stack_cannot_do(constants, message):
  with pytest.raises(ValueError, match=message):
    train_step.Steps(lowered.task(**constants), mesh=None)


def test_rows_that_do_not_split_into_microbatches():
  with pytest.raises(lowering.LoweringError, match='16 rows of a batch do not split into 3 micro'):
    lowered.lower((2, 1), task_params=lowered.task(MICROBATCHES=3), functions=())
