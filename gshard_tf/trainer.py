"""Trains a registered model on a mesh of devices.

  python -m gshard_tf.trainer --model=model_registry.catalog.Demo --logdir=logdir --mesh=8
  python -m gshard_tf.trainer --model=model_registry.smoke.Tiny --logdir=/tmp/tiny --mesh=4x2 --max_steps=20
  python -m gshard_tf.trainer --list

The same command again goes on from the newest checkpoint. Lingvo's own flags
and modes work too, for instance --mode=inspect_params.
"""

import dataclasses
import difflib
import importlib
import json
import pkgutil
import sys

from absl import app
from absl import flags
from absl import logging

from gshard_tf import quiet

with quiet.libraries():
  # pylint: disable=g-import-not-at-top
  from lingvo import model_imports
  from lingvo import model_registry as lingvo_registry
  from lingvo import trainer as lingvo_trainer

  from gshard_tf import lowering
  from gshard_tf import runners
  from gshard_tf import xla_sharding
  from gshard_tf.input import corpus
  from gshard_tf.input import tokenizer
  from gshard_tf.layers import weights
  from gshard_tf.runtime import loop
  from gshard_tf.runtime import mesh as mesh_lib
  from gshard_tf.runtime import partitioner
  import model_registry

flags.DEFINE_string('mesh', 'auto', 'Sizes of the mesh axes, such as 8 or 4x2 (experts '
                    'first, then model); auto for all devices along the first.')
flags.DEFINE_integer('max_steps', None, "Steps since the beginning; the model's own by default.",
                     lower_bound=1)
flags.DEFINE_integer('seed', 0, 'Of initial weights, dropout, routing and sampling.',
                     lower_bound=0, upper_bound=2**31 - 1)
flags.DEFINE_enum('partitioner', None, partitioner.NAMES,
                  "XLA's partitioner; JAX's default (JAX_USE_SHARDY_PARTITIONER) if not given.")
flags.DEFINE_bool('list', False, 'Print the registered models and exit.')
flags.DEFINE_string('json', None, '--json prints the result as JSON on the last line, '
                    '--json=FILE writes it there.')

FLAGS = flags.FLAGS

_USER_ERRORS = (lowering.LoweringError, runners.LogdirError, mesh_lib.MeshError,
                xla_sharding.ShardingError, corpus.CorpusError, tokenizer.VocabularyError,
                loop.ResumeError, weights.ParamsError, partitioner.PartitionerError,
                FloatingPointError)


class UnknownModelError(ValueError):
  """A model name that is not registered."""


class RunnerManager(lingvo_trainer.RunnerManager):
  """Lingvo's RunnerManager with the job `spmd`."""

  def Start(self):
    if (FLAGS.mode, FLAGS.job) == ('sync', 'spmd'):  # which needs no TensorFlow server
      self.StartRunners(self.CreateRunners([FLAGS.job], FLAGS.logdir))
    else:
      super().Start()

  def _CreateRunner(self, job, model_task_name, logdir, tf_master, trial):
    if job != 'spmd':
      return super()._CreateRunner(job, model_task_name, logdir, tf_master, trial)
    with quiet.libraries():
      params = {name: self.GetParamsForDataset('trainer_client', name)
                for name in ('Train', 'Dev', 'Test')}
    return runners.SpmdTrainer(
        self._model_name, params, logdir, mesh_sizes(params['Train'].task),
        FLAGS.max_steps, FLAGS.seed)

  def StartRunners(self, all_runners):
    super().StartRunners(all_runners)
    for runner in all_runners:
      if isinstance(runner, runners.SpmdTrainer):
        write_result(dataclasses.asdict(runner.result))


def mesh_sizes(task_params):
  """The sizes in --mesh; sees to it that the CPU stands for that many devices."""
  sizes = mesh_lib.parse(FLAGS.mesh, len(task_params.mesh_axes))
  mesh_lib.set_platform(sizes)
  if FLAGS.partitioner:
    partitioner.use(FLAGS.partitioner)
  return sizes


def write_result(result: dict):
  """Prints or writes `result` as --json says."""
  line = json.dumps(result)
  if FLAGS.json:
    with open(FLAGS.json, 'w') as f:
      f.write(line + '\n')
  elif FLAGS.json is not None:
    print(line, flush=True)


def import_model(name: str):
  """Imports the file of a registered model.

  Args:
    name: such as `model_registry.catalog.Demo`, or one of Lingvo's own.

  Raises:
    UnknownModelError: there is none of that name; the message has the nearest.
  """
  known = registered()
  if name in known:
    return
  with quiet.libraries():
    try:
      if '.' in name and model_imports.ImportParams(name, require_success=False):
        lingvo_registry.GetClass(name)
        return
    except LookupError:
      pass
  by_class = {full.rpartition('.')[2]: full for full in known}
  near = (difflib.get_close_matches(name, known, n=2) or
          [by_class[c] for c in difflib.get_close_matches(name.rpartition('.')[2], by_class, n=2)])
  hint = f'; did you mean {" or ".join(near)}?' if near else ''
  raise UnknownModelError(f'no model {name} is registered{hint} (python -m gshard_tf.trainer --list shows all)')


def registered() -> list[str]:
  """Names of all models in `model_registry`."""
  for module in pkgutil.iter_modules(model_registry.__path__, 'model_registry.'):
    importlib.import_module(module.name)
  with quiet.libraries():
    names = lingvo_registry.GetAllRegisteredClasses()
  return sorted(name for name in names if name.startswith('model_registry.'))


def main(unused_argv):
  if not FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)
  if FLAGS.list:
    print('\n'.join(registered()))
    return
  try:
    for flag in ('model', 'logdir'):
      if not FLAGS[flag].value:
        raise UnknownModelError(f'--{flag} is missing; --help shows examples')
    import_model(FLAGS.model)
    FLAGS.job = FLAGS.job or 'spmd'
    FLAGS.mode = FLAGS.mode if FLAGS['mode'].present else 'sync'
    RunnerManager(FLAGS.model).Start()
  except (UnknownModelError, *_USER_ERRORS) as error:
    print(f'trainer: {error}', file=sys.stderr)
    sys.exit(2)


if __name__ == '__main__':
  app.run(main, argv=['--json=' if a == '--json' else a for a in sys.argv])
