"""Tests of gshard_tf.lowering and gshard_tf.train_step: what the partitioner makes of a model."""

import functools
import re
import resource

import jax
from jax import export
from lingvo.core import optimizer as lingvo_optimizer
from lingvo.core import schedule as lingvo_schedule
import numpy as np
import pytest
import tensorflow as tf

from gshard_tf import lowering
from gshard_tf import train_step
from gshard_tf.params import sharding
from gshard_tf.runtime import mesh as mesh_lib
from tests import lowered
from tests import partitioned
from tests.lowered import Small

pytestmark = pytest.mark.slow

# Three devices divide neither the heads nor the vocabularies.
MESHES = [(1, 1), (2, 1), (4, 1), (8, 1), (4, 2), (2, 3)]
STEP, SEED = 3, 7
EXPERTS = (Small.NUM_EXPERTS, Small.MODEL_DIM, Small.HIDDEN_DIM)  # [E, M, H]
FAST = partitioned.FAST
SCALAR = jax.ShapeDtypeStruct((), np.int32)


def lower_train(steps):
  return export.deserialize(bytearray(lowering.lower(
      steps.train, {w.path: jax.ShapeDtypeStruct(w.shape, np.float32) for w in steps.specs},
      lowered.structs(lowered.rows_of_batch()), SCALAR, SCALAR)))


def compile_train(function, steps, mesh_shape):
  """Compiles the train function with weights and rows where the table puts them."""
  mesh = mesh_lib.make(mesh_shape, sharding.MESH_AXES)
  on = lambda axes: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
  axes = steps.partitioning.axes
  theta = {w.path: on(tuple(a or None for a in w.axes)) for w in lowering.weight_records(steps)}
  return jax.jit(function.call, in_shardings=(theta, on(axes('bl')), on(()), on(()))).lower(
      *jax.tree.unflatten(function.in_tree, function.in_avals)[0]).compile(FAST)


@functools.cache
def train_on(mesh_shape):
  steps = lowered.steps(mesh_shape)
  return compile_train(lower_train(steps), steps, mesh_shape)


@functools.cache
def unsharded():
  """The un-lowered, un-annotated train step, run by TensorFlow."""
  train = tf.function(lowered.steps().train, autograph=False)
  out = train(*jax.tree.map(tf.constant, (lowered.theta(), lowered.random_batch(0), STEP, SEED)))
  return jax.tree.map(lambda x: x.numpy(), out)


def relative_error(a, b):
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize('mesh_shape', MESHES)
def test_sharded_equals_unsharded(mesh_shape):
  out = train_on(mesh_shape)(
      lowered.theta(), lowered.random_batch(0), np.int32(STEP), np.int32(SEED))
  want = unsharded()
  assert out['grads'].keys() == want['grads'].keys() == lowered.theta().keys()
  assert out['metrics'].keys() == want['metrics'].keys()
  # 1e-5 and not 0, since sums over rows, hidden units and the vocabulary are
  # taken by parts, device by device, and float32 addition is not associative.
  for path, gradient in want['grads'].items():
    assert np.linalg.norm(gradient) > 0, path
    assert relative_error(out['grads'][path], gradient) < 1e-5, path
  for name, value in want['metrics'].items():
    np.testing.assert_allclose(out['metrics'][name], value, rtol=1e-5, atol=1e-7, err_msg=name)


def test_dropout_and_routing_differ_with_step_and_seed_alone():
  train = train_on((2, 1))
  losses = {
      (step, seed): float(train(lowered.theta(), lowered.random_batch(0), np.int32(step),
                                np.int32(seed))['metrics']['loss'])
      for step in (3, 4) for seed in (7, 8)}
  assert len(set(losses.values())) == 4, losses
  again = train(lowered.theta(), lowered.random_batch(0), np.int32(3), np.int32(7))
  assert float(again['metrics']['loss']) == losses[3, 7]


def test_evaluation_has_no_randomness():
  """The lowered evaluation of dropout's model is that of its twin without any."""
  deterministic = lowered.task(DROPOUT=0., SECOND_EXPERT='all')
  with_dropout = lowered.program((2, 1)).evaluate(
      lowered.theta(), lowered.held_out_batch(0))
  twin = train_step.Steps(deterministic.Set(num_languages=len(lowered.LANGUAGES)), None)
  want = tf.function(twin.evaluate, autograph=False)(
      *jax.tree.map(tf.constant, (lowered.theta(), lowered.held_out_batch(0))))
  assert with_dropout.keys() == want.keys()
  for name, pair in want.items():  # rtol: sums by parts, as above
    np.testing.assert_allclose(with_dropout[name], pair, rtol=1e-5, atol=1e-7, err_msg=name)


# The text of partitioned programs.


def collectives(text, kind):
  """For each collective of a kind the shapes of its results."""
  found = []
  for line in text.splitlines():
    match = re.search(rf' = (.*?) {kind}(?:-start)?\(', line)
    if match:
      found.append(shapes(match[1]))
  return found


def shapes(text):
  return [tuple(map(int, dims.split(','))) if dims else ()
          for dims in re.findall(r'\b[a-z]+\d+\[([\d,]*)\]', text)]


@functools.cache
def train_text():
  """The whole step with its optimiser, of 8 devices."""
  program = lowered.program((8, 1))
  batch = lowered.structs(lowered.rows_of_batch())
  return program.train.lower(program.state_shapes, batch, SCALAR).compile(FAST).as_text()


def test_no_device_sees_all_experts():
  full = np.prod(EXPERTS)
  dims = sorted(EXPERTS)
  text = train_text()
  assert (1, *EXPERTS[1:]) in shapes(text)  # a device's own expert
  assert not [s for s in shapes(text) if sorted(n for n in s if n > 1) == dims]
  whole = [s for kind in ('all-gather', 'all-reduce') for result in collectives(text, kind)
           for s in result if np.prod(s) >= full and EXPERTS[2] in s]
  assert not whole


def test_a_moe_layer_is_four_all_to_alls():
  """Tokens to their experts and back, and their gradients likewise; nothing else."""
  found = collectives(train_text(), 'all-to-all')
  assert len(found) == 4 * lowered.SPARSE_LAYERS
  # Per device and layer G*C tokens of its expert, in as many parts as devices.
  sent = sorted(sum(np.prod(s) for s in result) for result in found)
  places = [Small.NUM_EXPERTS * Small.MODEL_DIM * int(
      Small.CAPACITY_FACTOR * Small.ROWS * length / Small.NUM_GROUPS / Small.NUM_EXPERTS)
            for length in (Small.TARGET_LENGTH, Small.SOURCE_LENGTH)]
  assert sent == [places[0]] * 4 + [places[1]] * 4


def test_only_what_the_table_asks_for_is_gathered():
  """SPLIT_VOCABULARY: tables for the lookup; hidden states and rows' scalars for the softmax."""
  rows = Small.ROWS, Small.TARGET_LENGTH
  asked = {(Small.SOURCE_VOCAB, Small.MODEL_DIM): 1, (Small.TARGET_VOCAB, Small.MODEL_DIM): 1,
           (*rows, Small.MODEL_DIM): 1, rows: 4}
  # The four of a number for each target position: labels, and the gradients of
  # the two parts of the loss and of the logarithm of the partition function.
  gathered = [s for result in collectives(train_text(), 'all-gather') for s in result]
  assert {s: gathered.count(s) for s in gathered} == asked


def test_a_table_that_splits_no_vocabulary_gathers_nothing():
  steps = train_step.Steps(
      lowered.task(SHARDING=sharding.GSHARD), lowered.mesh((8, 1)))
  text = compile_train(lower_train(steps), steps, (8, 1)).as_text()
  assert not collectives(text, 'all-gather')
  assert len(collectives(text, 'all-to-all')) == 4 * lowered.SPARSE_LAYERS


def test_each_device_draws_its_own_weights():
  """Nothing in the init program is larger than the largest shard of a weight."""
  program = lowered.program((8, 1))
  text = program.init.lower(SCALAR).compile(FAST).as_text()
  shards = [program.state_shardings['theta'][w.path].shard_shape(w.shape)
            for w in program.artifact.weights]
  largest = max(map(np.prod, shards))
  assert largest < np.prod(EXPERTS)
  assert set(shards) <= set(shapes(text))
  assert max(np.prod(s, dtype=int) for s in shapes(text)) == largest


def test_initial_weights_do_not_depend_on_the_mesh():
  one, eight = (lowered.program(shape).init(np.int32(5)) for shape in ((2, 1), (8, 1)))
  shardings = lowered.program((8, 1)).state_shardings['theta']
  for path, weight in one['theta'].items():
    np.testing.assert_array_equal(weight, eight['theta'][path], err_msg=path)
    assert eight['theta'][path].sharding == shardings[path]
  other = lowered.program((2, 1)).init(np.int32(6))['theta']
  tables = [p for p in other if p.endswith('table')]
  assert len(tables) == 2
  for path in tables:
    assert (np.asarray(other[path]) != np.asarray(one['theta'][path])).mean() > .99


# What does not fit.


def batch_of(rows):
  return jax.tree.map(lambda s: (rows, s[1]), lowered.rows_of_batch(),
                      is_leaf=lambda s: isinstance(s, tuple))


@pytest.mark.parametrize('mesh_shape, changes, message', [
    ((3, 1), dict(), r'8 experts of \S+wi do not split over 3 devices .*choose a mesh'),
    ((5, 1), dict(), r'do not split over 5 devices \(mesh axes expert\); choose a mesh whose axes'),
    ((8, 1), dict(batch=batch_of(12)),
     r'12 rows of a batch do not split over 8 devices .*expert.*multiple of 8'),
    ((8, 1), dict(task_params=lowered.task(DECODE_ROWS=12, NUM_GROUPS=4)),
     r'12 rows of a decoding step do not split over 8 devices'),
])
def test_what_a_mesh_does_not_divide(mesh_shape, changes, message):
  with pytest.raises(lowering.LoweringError, match=message) as error:
    lowered.lower(mesh_shape, **changes)
  assert '\n' not in str(error.value)


def unsupported(change):
  train = lowered.task().train
  change(train)
  return train


@pytest.mark.parametrize('change, message', [
    (lambda t: t.Set(optimizer=lingvo_optimizer.Adam.Params()),
     'optimizer Adam: .*XLAShardingAdafactor'),
    (lambda t: t.optimizer.Set(beta1=.9), 'with beta1 0'),
    (lambda t: t.optimizer.Set(decay_exponent_pow=.8), 'no decay_exponent_pow'),
    (lambda t: t.Set(lr_schedule=lingvo_schedule.Constant.Params()),
     'lr_schedule Constant: the runtime has LinearRampupSqrtDecay'),
])
def test_an_optimizer_that_the_runtime_lacks(change, message):
  with pytest.raises(lowering.LoweringError, match=message) as error:
    lowering.optimizer_settings(unsupported(change))
  assert '\n' not in str(error.value)


def test_constants_of_the_size_of_an_activation_are_not_computed():
  """Zeros of 4 GiB are described, not made."""
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  function = lambda x: x + tf.zeros([2**16, 2**14])
  assert len(lowering.lower(function, jax.ShapeDtypeStruct((1, 2**14), np.float32))) < 10_000
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB
