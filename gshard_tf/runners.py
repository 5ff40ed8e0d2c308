"""The SPMD runner: what Lingvo's RunnerManager starts for the job `spmd`.

It lowers the registered model for a mesh, saves the artifact in the logdir, and
runs the training loop on the devices of this process.
"""

import os

import jax

from gshard_tf import artifact as artifact_lib
from gshard_tf import lowering
from gshard_tf import xla_sharding
from gshard_tf.input import generator
from gshard_tf.runtime import evaluation
from gshard_tf.runtime import loop
from gshard_tf.runtime import mesh as mesh_lib
from gshard_tf.runtime import program as program_lib


class LogdirError(ValueError):
  """A logdir that cannot be trained into."""


class SpmdTrainer:
  """Trains one model on one mesh.

  Attributes:
    enqueue_ops: None; RunnerManager asks, since its own runners may have some.
    result: how the run ended, once `Start` has returned.
  """

  enqueue_ops = None

  def __init__(self, name: str, params: dict, logdir: str, mesh_sizes, max_steps: int | None,
               seed: int):
    """Describes the run; nothing is done before `Start`.

    Args:
      name: the model's registered name.
      params: Lingvo's model Params for each of its data sets, Train and Dev
        among them.
      logdir: where everything goes.
      mesh_sizes: from `runtime.mesh.parse`.
      max_steps: steps since the very beginning; None for the model's own.
      seed: of the initial weights, dropout, routing and sampling.

    Raises:
      LogdirError: the logdir cannot be written, or another model's is in it.
    """
    self._name, self._params, self._logdir = name, params, logdir
    self._task = params['Train'].task
    self._mesh_sizes, self._seed = mesh_sizes, seed
    self._max_steps = max_steps or self._task.train.max_steps
    self.result = None
    self._artifact_folder = os.path.join(logdir, 'artifact')
    check_writable(logdir)
    if os.path.exists(self._artifact_folder):
      there = artifact_lib.Artifact.load(self._artifact_folder)
      if there.model != name:
        raise LogdirError(f'{logdir} holds {there.model}; choose another logdir for {name}')

  def Start(self):
    """Lowers, trains, and leaves how it ended in `result`."""
    mesh = mesh_lib.make(self._mesh_sizes, self._task.mesh_axes, self._task.model_partitions)
    inputs = {name: p.input for name, p in self._params.items()}
    held_out = inputs['Dev'].Instantiate()
    data = self._data(inputs, held_out)
    artifact = self._lower(mesh, inputs, held_out.corpus.languages)
    print(f'{self._name}: {artifact.num_parameters:,} parameters on a mesh of '
          f'{"x".join(map(str, mesh.devices.shape))} {mesh.devices.flat[0].platform} devices',
          flush=True)
    program = program_lib.Program(artifact, mesh)
    self.result = loop.train(
        program, data, self._logdir, max_steps=self._max_steps, seed=self._seed,
        save_every=self._task.train.save_interval_steps,
        say=lambda line: print(line, flush=True))

  def _lower(self, mesh: jax.sharding.Mesh, inputs: dict, languages) -> artifact_lib.Artifact:
    train = inputs['Train']
    artifact = lowering.lower_task(
        self._name, self._task, xla_sharding.Mesh(mesh.devices.shape, mesh.axis_names),
        generator.batch_shapes(train), {name: p.path for name, p in inputs.items()},
        {'source': train.source_model, 'target': train.target_model}, languages=languages)
    if os.path.exists(self._artifact_folder):
      there = artifact_lib.Artifact.load(self._artifact_folder)
      described = lambda a: sorted(layer for w in a.weights for layer in w.of_layers())
      if described(there) != described(artifact):
        raise LogdirError(f'the weights of {self._name} have changed since {self._logdir} was '
                          'made; choose another logdir')
    artifact.save(self._artifact_folder)
    return artifact

  def _data(self, inputs: dict, held_out) -> loop.Data:
    train = inputs['Train'].Copy().Set(seed=self._seed).Instantiate()
    once = inputs['Train'].Copy().Set(training=False).Instantiate()
    batches = lambda generator, **kw: map(_plain, generator.Dataset(**kw).as_numpy_iterator())
    strip = lambda items: (_without_place(batch) for batch in items)
    return loop.Data(
        train=lambda position: batches(train, start=position),
        held_out=lambda: strip(batches(held_out)),
        unigram_nll=evaluation.unigram_nll(
            strip(batches(once)), strip(batches(held_out)),
            self._task.target_embedding.vocab_size))


def check_writable(logdir: str):
  """Raises LogdirError where `logdir` cannot be made or written."""
  try:
    os.makedirs(logdir, exist_ok=True)
    probe = os.path.join(logdir, '.writable')
    with open(probe, 'w'):
      pass
    os.remove(probe)
  except OSError as error:
    raise LogdirError(f'cannot write to --logdir={logdir}: {error.strerror}') from error


def _plain(batch):
  """NestedMaps to dicts; drops what counts skipped examples."""
  return {name: dict(value) if isinstance(value, dict) else value
          for name, value in batch.items() if name in ('src', 'tgt', 'position')}


def _without_place(batch):
  return {side: dict(batch[side]) for side in ('src', 'tgt')}
