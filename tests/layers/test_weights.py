"""Declared weights: initial values, structure, and Lingvo's own variables of them."""

import re

from lingvo.core import py_utils
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.compiler.xla.experimental import xla_sharding as tf_xla_sharding

from gshard_tf import xla_sharding
from gshard_tf.layers import feed_forward
from gshard_tf.layers import weights
from tests.layers import layer as layers
from tests.layers.stacks import make_stack


def spec(path='a.w', shape=(256, 256), init=weights.Init(0., 1.)):
  return weights.WeightSpec(path, shape, 'xy', init)


def initial(w, seed):
  return weights.initial_value(w, tf.constant(seed)).numpy()


def test_initial_value_depends_on_path_and_seed_alone():
  want = initial(spec(), 1)
  np.testing.assert_array_equal(initial(spec(), 1), want)
  for other in (initial(spec(path='b.w'), 1), initial(spec(), 2)):
    # Independent normals: the correlation has a deviation of 1/sqrt(n).
    assert abs(np.corrcoef(want.ravel(), other.ravel())[0, 1]) < 5. / 256


@pytest.mark.parametrize('init', [weights.Init(0., 2.), weights.Init(-1., .1), weights.Init.fan_in(64),
                                  weights.Init.fan_in(64, gain=2.)])
def test_initial_values_have_the_declared_mean_and_deviation(init):
  x = initial(spec(init=init), 3).astype(np.float64)
  # Deviations of the mean, s/sqrt(n), and of the deviation, s/sqrt(2n); five of them.
  assert x.mean() == pytest.approx(init.mean, abs=5. * init.stddev / 256)
  assert x.std() == pytest.approx(init.stddev, abs=5. * init.stddev / 256 / np.sqrt(2.))


def test_fan_in_keeps_the_variance_of_a_product():
  assert weights.Init.fan_in(16) == weights.Init(0., .25)
  assert weights.Init.fan_in(32, gain=2.) == weights.Init(0., .25)


def test_constant_initial_values():
  x = weights.initial_value(spec(init=weights.Init.constant(.5)), tf.constant(0), tf.bfloat16)
  assert x.dtype == tf.bfloat16
  assert (x.numpy() == .5).all()


@pytest.fixture(scope='module')
def stack():
  return make_stack(False, True)


def test_specs_have_the_structure_of_the_variables(stack):
  specs = weights.weight_specs(stack)
  names = dict(stack.vars.FlattenItems())
  assert dict(specs.FlattenItems()).keys() == names.keys()
  for path, w in specs.FlattenItems():
    assert w.path == re.sub(r'\[(\d+)\]', r'_\1', path)  # lists as Lingvo's variables have them
    assert w.shape == tuple(names[path].shape)
    assert len(w.letters) == len(w.shape)
  # 2 norms of a block, wq wk wv wo and a bias, wi wo, once wg; a final norm.
  assert len(weights.flatten(specs)) == 2 * (2 + 5 + 2) + 1 + 1


def test_flatten_is_in_order_of_paths_and_pack_is_its_inverse(stack):
  specs = weights.weight_specs(stack)
  flat = weights.flatten(specs)
  paths = [w.path for w in flat]
  assert paths == sorted(set(paths))
  packed = weights.pack(specs, {w.path: w.shape for w in flat})
  assert isinstance(packed.blocks, list)
  assert packed.blocks[1].feed_forward.experts.wi == (2, 8, 6)
  assert weights.flatten(weights.pack(specs, {w.path: w for w in flat})) == flat


def test_pairs_follow_the_part(stack):
  specs = weights.weight_specs(stack)
  assert all(a is b for a, b in weights.pairs(specs, specs))
  assert len(list(weights.pairs(specs, specs))) == len(weights.flatten(specs))
  part = py_utils.NestedMap(norm=py_utils.NestedMap(), blocks=[py_utils.NestedMap(), py_utils.NestedMap()])
  part.blocks[1].feed_forward = py_utils.NestedMap(router=py_utils.NestedMap(wg=7))
  (spec, value), = weights.pairs(specs, part)
  assert (spec.path, value) == ('blocks_1.feed_forward.router.wg', 7)


def test_lingvo_initialises_its_variables_to_the_same_values():
  params = feed_forward.FeedForward.Params().Set(
      name='layer', model_dim=8, hidden_dim=16, random_seed=5)
  with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    py_utils.GetOrCreateGlobalStepVar()
    layer = params.Instantiate()
    session.run(tf.compat.v1.global_variables_initializer())
    variables = session.run(dict(layer.vars))
  for name, w in weights.weight_specs(layer).items():
    np.testing.assert_allclose(variables[name], initial(w, 5), rtol=1e-6)


@pytest.mark.parametrize('hm', [('model', 'expert'), (None, ('model', 'expert')), ('expert', None)])
def test_lingvo_learns_the_sharding_of_a_weight(monkeypatch, hm):
  """What Lingvo makes of a declaration is the sharding that the annotation of the weight has."""
  declared = {}
  monkeypatch.setattr(feed_forward.FeedForward, 'CreateVariable',
                      lambda self, name, params, trainable: declared.update({name: params}))
  mesh = xla_sharding.Mesh((4, 2), ('expert', 'model'))
  with xla_sharding.partitioning(mesh, {'mh': (None, 'model'), 'hm': hm}):
    feed_forward.FeedForward.Params().Set(name='layer', model_dim=8, hidden_dim=8).Instantiate()
  for name, mapping in (('wi', (None, 'model')), ('wo', hm)):
    lingvo = tf_xla_sharding.mesh_split_sharding(
        declared[name].device_mesh, declared[name].tensor_split_dims_mapping).proto
    ours = xla_sharding.Mesh((4, 2), ('expert', 'model')).tile_assignment(mapping)[0]
    assert tuple(lingvo.tile_assignment_dimensions) == ours.shape
    assert list(lingvo.tile_assignment_devices) == ours.flatten().tolist()


class Undeclared(weights.Layer):
  """Has a variable that was not made by CreateWeight."""

  def __init__(self, params):
    super().__init__(params)
    self.CreateWeight('good', 'm', (2,), weights.Init.constant(0.))
    self.CreateVariable('stray', py_utils.WeightParams([2]))


class Mismatched(weights.Layer):
  """Declares two letters for three dimensions."""

  def __init__(self, params):
    super().__init__(params)
    self.CreateWeight('w', 'mh', (2, 3, 4), weights.Init.constant(0.))


def test_an_undeclared_variable_raises():
  layer = layers.make(Undeclared.Params())
  with pytest.raises(ValueError, match=r"layer has variables .*\['stray'\]; declare them by CreateWeight"):
    weights.weight_specs(layer)


def test_letters_that_do_not_fit_the_shape_raise():
  with pytest.raises(ValueError, match=r"layer.w: 2 letters 'mh' for shape \(2, 3, 4\)"):
    layers.make(Mismatched.Params())


def test_operations_are_named_after_layer_and_letters():
  """Of a stack in a graph, annotated for a mesh of one device."""
  stack = make_stack(False, True)
  class Whole(dict):
    """A table that splits nothing."""
    def __missing__(self, letters):
      return (None,) * len(letters.partition('_')[0])
    def __contains__(self, letters):
      return True
  specs = weights.weight_specs(stack)
  with tf.Graph().as_default() as graph:
    py_utils.GetOrCreateGlobalStepVar()
    with xla_sharding.partitioning(xla_sharding.Mesh((1,), ('d',)), Whole()):
      theta = weights.pack(specs, {
          w.path: w.annotate(tf.zeros(w.shape)) for w in weights.flatten(specs)})
      stack.FProp(theta, tf.zeros([2, 6, 8]), py_utils.NestedMap(
          paddings=tf.zeros([2, 6]), ids=tf.zeros([2, 6], tf.int32),
          self_mask=tf.ones([2, 6, 6], tf.bool)))
  names = {op.name for op in graph.get_operations() if op.type == 'XlaSharding'}
  assert {'blocks_1.feed_forward.experts/egcm/XlaSharding',
          'blocks_1.feed_forward.experts/egcm_1/XlaSharding',
          'blocks_0.self_attention/blnk/XlaSharding',
          'blocks_0.feed_forward/mh/XlaSharding'} <= names  # the last one of a weight
  layers = {w.path.rpartition('.')[0] for w in weights.flatten(specs)}
  around = {layer.rpartition('.')[0] for layer in layers}
  assert layers <= {name.split('/')[0] for name in names} <= layers | around
