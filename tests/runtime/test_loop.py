"""Tests of gshard_tf.runtime.loop: a tiny model on two devices, and batches without an end."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal

import jax
import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator

from gshard_tf.runtime import checkpoint
from gshard_tf.runtime import loop
from tests import lowered
from tests.lowered import Small

pytestmark = pytest.mark.slow

SEED = 4


@dataclasses.dataclass
class Run:
  """What one call of `loop.train` left: its result and what it said."""
  result: loop.Result
  said: list[str]


def train(logdir, max_steps, data=None, save_every=4):
  said = []
  result = loop.train(
      lowered.program((2, 1)), data or lowered.data(), str(logdir), max_steps=max_steps,
      seed=SEED, save_every=save_every, say=said.append)
  return Run(result, said)


def losses(logdir):
  """The loss of every step, as text: what is compared bit by bit."""
  return (pathlib.Path(logdir) / 'train' / 'losses.jsonl').read_text().splitlines()


def saved_state(logdir, step):
  program = lowered.program((2, 1))
  checkpoints = checkpoint.Checkpoints(str(pathlib.Path(logdir) / 'checkpoints'), [])
  assert checkpoints.latest_step() == step
  state, place = checkpoints.restore(step, program.state_shapes, program.state_shardings)
  checkpoints.close()
  return state, place


@pytest.fixture(name='straight', scope='module')
def _straight(tmp_path_factory):
  """A logdir of ten steps without a break, and the run."""
  logdir = tmp_path_factory.mktemp('straight')
  return logdir, train(logdir, 10)


def assert_continues(logdir, straight):
  """The logdir holds what ten steps without a break leave."""
  assert losses(logdir) == losses(straight[0])
  state, place = saved_state(logdir, 10)
  want, want_place = saved_state(straight[0], 10)
  assert place == want_place == {'position': 30, 'seed': SEED}
  jax.tree.map(np.testing.assert_array_equal, state, want)


def test_a_run(straight):
  logdir, run = straight
  steps = [json.loads(line) for line in losses(logdir)]
  assert [s['step'] for s in steps] == list(range(1, 11))
  assert all(set(s) == {'step', 'loss'} for s in steps)
  assert run.result.step == 10 and run.result.resumed_from is None
  assert run.result.loss == steps[-1]['loss']
  assert run.result.tokens_per_second > 0
  assert run.result.unigram_nll == lowered.data().unigram_nll
  # Ten steps of noise: no more than that the optimiser does something useful.
  assert run.result.held_out_nll < run.result.untrained_nll
  assert f'{run.result.untrained_nll:.4f}' in run.said[0]


def test_resuming_is_as_going_on(straight, tmp_path):
  assert train(tmp_path, 5).result.step == 5
  resumed = train(tmp_path, 10)
  assert resumed.result.resumed_from == 5
  assert resumed.result.untrained_nll is None
  assert f'resumed from step 5 in {tmp_path}' in resumed.said
  assert resumed.result.held_out_nll == straight[1].result.held_out_nll
  assert_continues(tmp_path, straight)


def test_steps_that_no_checkpoint_holds_are_done_again(straight, tmp_path):
  """A crash after step 6: the newest checkpoint is of step 4, a line is half written."""
  train(tmp_path, 6)
  shutil.rmtree(tmp_path / 'checkpoints' / '6')
  with open(tmp_path / 'train' / 'losses.jsonl', 'a') as f:
    f.write('{"step": 7, "lo')
  assert train(tmp_path, 10).result.resumed_from == 4
  assert_continues(tmp_path, straight)
  steps = [event.step for event in events(tmp_path).Scalars('loss')]
  assert steps == list(range(1, 11))


def test_a_finished_run_is_left_as_it_is(straight, tmp_path):
  logdir = shutil.copytree(straight[0], tmp_path / 'copy')
  run = train(logdir, 10)
  assert run.result.step == run.result.resumed_from == 10
  assert run.result.loss is None and run.result.tokens_per_second is None
  assert run.result.held_out_nll == straight[1].result.held_out_nll
  assert_continues(logdir, straight)


def events(logdir):
  accumulator = event_accumulator.EventAccumulator(
      str(logdir / 'train'), size_guidance={
          event_accumulator.SCALARS: 0, event_accumulator.HISTOGRAMS: 0, event_accumulator.IMAGES: 0})
  return accumulator.Reload()


def test_tensorboard_reads_the_events(straight):
  logdir, run = straight
  accumulator = events(logdir)
  tags = set(accumulator.Tags()['scalars'])
  assert {'loss', 'nll', 'aux_loss', 'gradient_norm', 'learning_rate', 'tokens_per_second',
          'held_out/nll'} <= tags
  logged = accumulator.Scalars('loss')
  assert [event.step for event in logged] == list(range(1, 11))
  for event, line in zip(logged, losses(logdir)):
    assert event.value == np.float32(json.loads(line)['loss'])
  last = accumulator.Scalars('held_out/nll')[-1]
  assert last.step == 10 and last.value == np.float32(run.result.held_out_nll)


@pytest.mark.parametrize('layer', ['encoder.blocks_1', 'decoder.blocks_1'])
def test_tensorboard_shows_the_experts_of_every_layer(straight, layer):
  accumulator = events(straight[0])
  for prefix, steps in (('', list(range(1, 11))), ('held_out/', [0, 4, 8, 10])):
    values = {}
    for name in ('dropped', 'bypassed', 'entropy', 'first_gate', 'second_gate', 'dead', 'busiest',
                 'balance_loss', 'z_loss'):
      logged = accumulator.Scalars(f'{prefix}experts/{layer}/{name}')
      assert [event.step for event in logged] == steps
      values[name] = np.array([event.value for event in logged])
    assert np.all((0 <= values['bypassed']) & (values['bypassed'] <= values['dropped']))
    assert np.all((0 < values['entropy']) & (values['entropy'] <= np.log(Small.NUM_EXPERTS)))
    assert np.all((0 < values['second_gate']) & (values['second_gate'] < values['first_gate']))
    histograms = accumulator.Histograms(f'{prefix}experts/{layer}/load')
    assert [event.step for event in histograms] == steps
    loads = np.array([event.histogram_value.bucket for event in histograms])
    assert loads.shape[1] == Small.NUM_EXPERTS
    np.testing.assert_allclose(loads.sum(1), 1., rtol=1e-6)  # float32
    np.testing.assert_allclose(loads.max(1) * Small.NUM_EXPERTS, values['busiest'], rtol=1e-6)
    np.testing.assert_array_equal((loads == 0).sum(1), values['dead'])


def test_tensorboard_shows_which_language_uses_which_experts(straight):
  images = events(straight[0]).Images('held_out/experts/load_by_language')
  assert [image.step for image in images] == [0, 4, 8, 10]
  for image in images:
    assert image.encoded_image_string.startswith(b'\x89PNG') and image.width > image.height > 100
  assert images[0].encoded_image_string != images[-1].encoded_image_string


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_with_a_checkpoint_of_the_step_under_way(straight, tmp_path, number):
  handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]

  def interrupted(position):
    for i, batch in enumerate(lowered.data().train(position), 1):
      if i == 3:
        os.kill(os.getpid(), number)
      yield batch

  run = train(tmp_path, 10, dataclasses.replace(lowered.data(), train=interrupted))
  assert run.result.step == 3
  assert any(number.name in line and 'step 3' in line and 'resume' in line for line in run.said)
  assert saved_state(tmp_path, 3)[1]['position'] == 9
  assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers
  train(tmp_path, 10)
  assert_continues(tmp_path, straight)


def test_a_loss_that_is_not_finite_ends_the_run(straight, tmp_path):
  """A state with one weight that is not a number, as a diverging run has."""
  state, place = saved_state(straight[0], 10)
  table = 'target_embedding.table'
  state['theta'][table] = state['theta'][table].at[5].set(np.nan)
  checkpoints = checkpoint.Checkpoints(str(tmp_path / 'checkpoints'), [])
  checkpoints.save(10, state, place)
  checkpoints.close()
  handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
  with pytest.raises(FloatingPointError, match=(
      'loss is nan at step 11; the newest checkpoint is of step 10; .*learning rate')) as error:
    train(tmp_path, 20, save_every=1)
  assert '\n' not in str(error.value)
  assert saved_state(tmp_path, 10)[1] == place  # none of step 11
  assert [json.loads(line)['step'] for line in losses(tmp_path)] == [11]
  assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_the_input_that_fails_leaves_what_was_saved(straight, tmp_path):
  """An error of the input: signals act again, and the last checkpoint is whole."""
  handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]

  def broken(position):
    for i, batch in enumerate(lowered.data().train(position), 1):
      if i == 6:
        raise OSError('the disk is gone')
      yield batch

  with pytest.raises(OSError, match='the disk is gone'):
    train(tmp_path, 10, dataclasses.replace(lowered.data(), train=broken), save_every=5)
  assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers
  assert saved_state(tmp_path, 5)[1]['position'] == 15
  train(tmp_path, 10)
  assert_continues(tmp_path, straight)


def test_another_seed_does_not_resume(straight, tmp_path):
  logdir = tmp_path / 'logdir'
  shutil.copytree(straight[0], logdir)
  with pytest.raises(loop.ResumeError, match=f'with seed {SEED}, not {SEED + 1}'):
    loop.train(lowered.program((2, 1)), lowered.data(), str(logdir), max_steps=12,
               seed=SEED + 1, save_every=4, say=lambda line: None)
  assert losses(logdir) == losses(straight[0])
