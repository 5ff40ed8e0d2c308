"""Every registered model, described without a weight; and the paper's ladder against its table."""

import functools
import importlib
import inspect
import pkgutil

from lingvo import model_imports
from lingvo import model_registry as lingvo_registry
import numpy as np
import pytest
import tensorflow as tf

from gshard_tf import train_step
from gshard_tf import xla_sharding
from gshard_tf.params import translation
import model_registry
from model_registry import catalog
from model_registry import m4

pytestmark = pytest.mark.slow


def registered():
  """The classes of all modules of the registry that are not private."""
  modules = [importlib.import_module(f'model_registry.{module.name}')
             for module in pkgutil.iter_modules(model_registry.__path__)]
  return {f'{cls.__module__}.{name}': cls for module in modules
          for name, cls in inspect.getmembers(module, inspect.isclass)
          if cls.__module__ == module.__name__ and not name.startswith('_')}


MODELS = registered()


@functools.cache
def steps_of(cls):
  # On a mesh, so that letters and axes of every weight are looked up.
  return train_step.Steps(cls().Task(), xla_sharding.Mesh((2, 2), ('expert', 'model')))


@pytest.mark.parametrize('name', MODELS)
def test_every_model_instantiates_and_its_sharding_table_is_complete(name):
  assert model_imports.ImportParams(name)
  cls = lingvo_registry.GetClass(name)  # as --model finds it
  assert issubclass(cls, translation.Translation)
  assert cls.__doc__
  steps = steps_of(MODELS[name])
  partitioning = steps.partitioning
  for w in steps.specs:
    assert min(w.shape) > 0
    axes = partitioning.axes(w.letters)
    partitioning.mesh.tile_assignment(axes)
  assert len({w.path for w in steps.specs}) == len(steps.specs)
  for dataset in ('Train', 'Dev', 'Test'):
    data = getattr(cls(), dataset)()
    assert data.batch_size == cls.ROWS > 0
    assert data.path.endswith(f'{dataset.lower()}.tsv')
    assert data.training == (dataset == 'Train')
  assert steps.params.decode_rows > 0


@pytest.mark.parametrize('name', MODELS)
def test_tokens_split_into_groups_and_groups_over_devices(name):
  cls = MODELS[name]
  for length in (cls.SOURCE_LENGTH, cls.TARGET_LENGTH):
    assert not cls.NUM_GROUPS or cls.ROWS * length % cls.NUM_GROUPS == 0
  # So rows lie along the same devices as experts, one expert a device.
  assert not cls.NUM_EXPERTS or cls.ROWS % cls.NUM_EXPERTS == 0


def test_a_description_makes_no_variable_in_the_callers_graph():
  with tf.Graph().as_default() as graph:
    train_step.Steps(MODELS['model_registry.smoke.Tiny']().Task(), None)
  assert not graph.get_operations()


def count(cls, select=lambda w: True):
  return sum(int(np.prod(w.shape, dtype=np.int64)) for w in steps_of(cls).specs if select(w))


def own_paths(w):
  """The paths of a weight of each layer, whether they are stacked or not."""
  return w.layers or (w.path,)


def is_expert(w):
  return w.letters in ('emh', 'ehm')


# Table 3 of 2006.16668: billions of weights, experts of a layer, layers.
PAPER = {
    m4.MoE2048E36L: (600., 2048, 36),
    m4.MoE2048E12L: (200., 2048, 12),
    m4.MoE512E36L: (150., 512, 36),
    m4.MoE512E12L: (50., 512, 12),
    m4.MoE128E36L: (37., 128, 36),
    m4.MoE128E12L: (12.5, 128, 12),
}


@pytest.mark.parametrize('cls', PAPER, ids=lambda cls: cls.__name__)
def test_the_ladder_has_the_experts_and_weights_of_the_paper(cls):
  billions, experts, layers = PAPER[cls]
  wi = [w.shape[-3:] for w in steps_of(cls).specs if w.letters == 'emh' for _ in own_paths(w)]
  assert wi == [(experts, 1024, 8192)] * (layers // 2)
  # The table rounds down: the 128 * 18 = 2304 experts of its "37B", of 16.8M
  # weights each, are already 38.65B; so all weights have a wider margin than
  # the experts alone.
  assert count(cls, is_expert) == 2 * 1024 * 8192 * experts * layers // 2
  assert count(cls, is_expert) / 1e9 == pytest.approx(billions, rel=.05)
  assert count(cls) / 1e9 == pytest.approx(billions, rel=.07)
  # The paper prints 36684 and 12228 for two of them, with digits transposed.
  total = sum(shape[0] for shape in wi)
  assert total == {2048: {36: 36864, 12: 12288}, 512: {36: 9216, 12: 3072}, 128: {36: 2304, 12: 768}}[experts][layers]
  assert cls.NUM_GROUPS == experts  # one expert and one group a core
  assert cls.ROWS * cls.SOURCE_LENGTH == (2**22 if experts == 2048 else 2**20)


def test_the_dense_baseline_has_the_weights_of_the_paper():
  assert count(m4.T96L) / 1e9 == pytest.approx(2.3, rel=.05)
  assert not count(m4.T96L, is_expert)
  blocks = {tuple(path.split('.')[:2]) for w in steps_of(m4.T96L).specs if w.letters == 'mh'
            for path in own_paths(w)}
  assert len(blocks) == 96


@pytest.mark.parametrize('cls, trillions', [(m4.MoE1T, 1.), (m4.MoE2T, 2.2)])
def test_models_beyond_the_paper_have_the_weights_that_they_say(cls, trillions):
  assert count(cls) / 1e12 == pytest.approx(trillions, rel=.05)


def active_feed_forward_weights(cls):
  """Weights of feed-forwards that one token meets: two experts of a sparse one."""
  return sum(2 * count(cls, lambda w: w is spec) // spec.shape[0] if is_expert(spec)
             else count(cls, lambda w: w is spec)
             for spec in steps_of(cls).specs if 'feed_forward.' in spec.path and spec.letters != 'me')


def test_the_demo_and_its_dense_twin_do_as_much_for_a_token():
  # Two operations, a product and a sum, for each weight that a token meets; the
  # gates, which only the sparse one has, are below a hundredth of them.
  assert active_feed_forward_weights(catalog.Demo) == active_feed_forward_weights(catalog.DemoDense)
  gates = count(catalog.Demo, lambda w: w.letters == 'me')
  assert 0 < gates < .01 * active_feed_forward_weights(catalog.Demo)
  rest = lambda cls: count(cls, lambda w: 'feed_forward.' not in w.path)
  assert rest(catalog.Demo) == rest(catalog.DemoDense)
