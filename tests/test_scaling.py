"""What is compiled for TPUs is what trains, and its figures hang together."""

import functools

from absl import flags
import jax
from lingvo import model_registry as lingvo_registry
import pytest

from gshard_tf import lowering
from gshard_tf import runners
from gshard_tf import scaling
from gshard_tf.params import variants
from gshard_tf.runtime import aot
from gshard_tf.runtime import buffers
from gshard_tf.runtime import mesh as mesh_lib
from gshard_tf.runtime import roofline
from gshard_tf.runtime import topologies
from model_registry import m4
from model_registry import smoke

pytestmark = pytest.mark.slow

NAME = 'model_registry.smoke.Tiny'
TASK = smoke.Tiny().Task()


@pytest.fixture(scope='module', name='trained')
def _trained(tmp_path_factory):
  """The program that the trainer begins to run on 8 devices."""
  caught = []
  if not flags.FLAGS.is_parsed():  # Lingvo reads its own
    flags.FLAGS(['test'])
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(runners.loop, 'train', lambda program, *a, **k: caught.append(program))
    patch.setattr(runners.lowering, 'lower_task', functools.partial(  # of five functions the one
        lowering.lower_task, functions=('train',)))
    params = {n: lingvo_registry.GetParams(NAME, n) for n in ('Train', 'Dev', 'Test')}
    runners.SpmdTrainer(NAME, params, str(tmp_path_factory.mktemp('logdir')), (8, 1), 1, 0).Start()
  return caught[0]


@pytest.fixture(scope='module', name='artifact')
def _artifact():
  """The artifact that the report compiles for v3:2x2."""
  aot.prepare()
  mesh = aot.topology_mesh('v3:2x2', None, TASK.mesh_axes)
  return scaling.train_artifact(NAME, TASK, smoke.Tiny().Train(), mesh)


def test_the_report_compiles_the_step_that_the_trainer_runs(artifact, trained):
  other = trained.artifact
  for field in ('weights', 'optimizer', 'batch', 'batch_axes', 'mesh_shape', 'mesh_axes'):
    assert getattr(artifact, field) == getattr(other, field), field
  # The step with its optimiser and its donated state, on the same devices.
  ours = aot.lower_train_step(artifact, mesh_lib.make((8, 1), TASK.mesh_axes))
  theirs = aot.lower_train_step(other, trained.mesh)
  assert ours.as_text() == theirs.as_text()
  assert 'tf.aliasing_output' in ours.as_text() or 'jax.buffer_donor' in ours.as_text()


def test_the_step_lowered_for_the_report_is_the_loops_own(trained):
  int32 = lambda shape: jax.ShapeDtypeStruct(shape, 'int32')
  batch = jax.tree.map(int32, trained.artifact.batch, is_leaf=lambda s: isinstance(s, tuple))
  called = trained.train.lower(trained.state_shapes, batch, int32(()))
  assert called.as_text() == aot.lower_train_step(trained.artifact, trained.mesh).as_text()


def test_weights_of_a_core_without_lowering(artifact):
  memory = scaling.weight_bytes(smoke.Tiny, 'v3:2x2')
  experts = sum(w.shape[0] * w.shape[1] * w.shape[2] for w in artifact.weights
                if w.letters in ('emh', 'ehm'))
  tables = sum(w.shape[0] * w.shape[1] for w in artifact.weights if w.letters == 'vm')
  rest = artifact.num_parameters - experts - tables
  assert memory == 4 * (rest + (experts + tables) // 8)
  twice = variants.variant(smoke.Tiny, ['MODEL_PARTITIONS=2'])
  assert scaling.weight_bytes(twice, 'v3:2x2') < memory


def test_the_roofline_knows_the_slots_of_the_experts(artifact):
  settings = scaling._settings(TASK, artifact)  # pylint: disable=protected-access
  # 32 tokens in each of 8 groups, twice as many places over 8 experts.
  assert settings.slots == dict(encoder=8 * 64, decoder=8 * 64)
  assert settings.activation_bytes == 4 and not settings.remat
  other = variants.variant(smoke.Tiny, ['FPROP_DTYPE=bfloat16', 'REMAT=block', 'MICROBATCHES=2'])
  changed = scaling._settings(other().Task(), artifact)  # pylint: disable=protected-access
  assert (changed.activation_bytes, changed.remat, changed.microbatches) == (2, True, 2)
  parts = roofline.roofline(artifact, topologies.find('v3:2x2'), settings)
  assert set(parts) == set(roofline.PARTS) and all(p.seconds > 0 for p in parts.values())


def _described(buffer, task=TASK):
  layers = {'decoder.blocks_1.feed_forward': 'decoder.blocks_1.feed_forward'}
  return scaling._buffer(buffer, task, layers)  # pylint: disable=protected-access


def test_a_buffer_has_its_layer_and_what_makes_it_smaller():
  weight = _described(buffers.Buffer(
      8, 'argument', 'f32[2]', 'param.1', "state['theta']['decoder.blocks_1.feed_forward.wi']"))
  assert weight['layer'] == 'decoder.blocks_1.feed_forward' and weight['what'] == 'wi'
  assert 'MODEL_PARTITIONS' in weight['remedy'] and 'REMAT' not in weight['remedy']
  moment = _described(buffers.Buffer(
      8, 'argument', 'f32[2]', 'p', "state['optimizer'][0].v_row['encoder.blocks_0::2.x.wi']"))
  assert moment['layer'] == 'encoder.blocks_0::2.x' and moment['what'] == 'moment of wi'
  held = buffers.Buffer(8, 'temporary', 'f32[8,4]', 'fusion.1',
                        'jit(_train)/call_tf/decoder.blocks_1.feed_forward/einsum/Einsum')
  found = _described(held)
  assert found['layer'] == 'decoder.blocks_1.feed_forward' and not found['backward']
  for remedy in ('REMAT=block', 'MICROBATCHES=2', 'FPROP_DTYPE=bfloat16'):
    assert remedy in found['remedy']
  used = variants.variant(smoke.Tiny, ['REMAT=block', 'MICROBATCHES=4', 'FPROP_DTYPE=bfloat16'])
  found = _described(held, used().Task())
  assert 'MICROBATCHES=8' in found['remedy']
  assert 'REMAT' not in found['remedy'] and 'FPROP_DTYPE' not in found['remedy']


@pytest.mark.parametrize('model, topology, steps', [
    (m4.MoE2048E36L, 'v3:32x32', .72), (m4.MoE2048E36L, 'v3:16x16', None),
    (m4.T96L, 'v3:32x32', None), (smoke.Tiny, 'v3:32x32', None)])
def test_the_paper_stands_beside_on_its_own_slice_only(model, topology, steps):
  paper = scaling._paper(model, topologies.find(topology), 2**22)  # pylint: disable=protected-access
  assert (paper and paper['steps_per_second']) == steps
  if paper:
    assert paper['step_seconds'] == pytest.approx(1 / steps)
    # Table 3 of the paper has 22.4 for the training of about 1T tokens.
    assert paper['core_years_per_trillion_tokens'] == pytest.approx(22.4, rel=.05)
