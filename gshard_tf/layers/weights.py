"""Declaring the weights of a layer: shape, letters and initial values together.

A layer derives from `Layer` and declares each weight once by `CreateWeight`. The
declaration serves Lingvo, which makes a variable of it, and the lowering, which
reads `weight_specs` and never makes one.
"""

import contextlib
import functools
import hashlib
import inspect
import math
from typing import NamedTuple, Sequence

from lingvo.core import base_layer
from lingvo.core import base_model
from lingvo.core import py_utils
import tensorflow as tf

from gshard_tf import xla_sharding
from gshard_tf.layers import randomness


class ParamsError(ValueError):
  """Params of a layer that contradict each other or what the layer is given."""


class Init(NamedTuple):
  """Initial values: a normal distribution, or a constant where `stddev` is 0."""
  mean: float
  stddev: float

  @classmethod
  def constant(cls, value: float) -> 'Init':
    """All elements equal to `value`."""
    return cls(value, 0.)

  @classmethod
  def fan_in(cls, fan_in: int, gain: float = 1.) -> 'Init':
    """Normal with variance `gain / fan_in`, for products over `fan_in` terms."""
    return cls(0., math.sqrt(gain / max(fan_in, 1)))


class WeightSpec(NamedTuple):
  """A declared weight.

  Attributes:
    path: its name in the model, for instance `encoder.blocks_1.feed_forward.wi`.
    shape: its global shape.
    letters: one letter for each dimension, a key of the sharding table; a
      stacked weight has one dimension more, the first.
    init: its initial values.
    layers: of a stacked weight the paths of the layers' own weights, in order;
      empty otherwise.
    trainable: whether gradients change it; if not, the steps' `updates` do.
  """
  path: str
  shape: tuple[int, ...]
  letters: str
  init: Init
  layers: tuple[str, ...] = ()
  trainable: bool = True

  def axes(self, partitioning: xla_sharding.Partitioning) -> xla_sharding.DimsMapping:
    """The mesh axes of each dimension; layers are not spread over devices."""
    return (None,) * bool(self.layers) + tuple(partitioning.axes(self.letters))

  def annotate(self, weight: tf.Tensor) -> tf.Tensor:
    """Annotates the weight, or its gradient, with the partitioning in force."""
    here = xla_sharding.current()
    if here.mesh is None:
      return weight
    layer = (self.layers or (self.path,))[0].rpartition('.')[0]
    with scope(layer), tf.name_scope(self.letters):
      return xla_sharding.mesh_split(weight, here.mesh, self.axes(here))


def initial_value(spec: WeightSpec, seed, dtype=tf.float32) -> tf.Tensor:
  """Draws the initial value of a weight.

  Args:
    spec: the weight.
    seed: int32 [], the seed of the whole model. A weight's draw depends on it
      and on the weight's path alone.
    dtype: a floating type.

  Returns:
    <dtype> of shape `spec.shape`.
  """
  if spec.layers:
    own = spec._replace(shape=spec.shape[1:], layers=())
    return tf.stack([initial_value(own._replace(path=path), seed, dtype) for path in spec.layers])
  if not spec.init.stddev:
    return tf.fill(spec.shape, tf.cast(spec.init.mean, dtype))
  digest = hashlib.blake2b(spec.path.encode(), digest_size=4).digest()
  key = tf.stack([tf.cast(seed, tf.uint32),
                  tf.constant(int.from_bytes(digest, 'little'), tf.uint32)])
  return tf.cast(spec.init.mean + spec.init.stddev * _normal(key, spec.shape), dtype)


@tf.function(autograph=False)  # traced once for each shape, not for each weight
def _normal(key, shape):
  """Standard normal numbers from the hash of a key and of each element's index."""
  return randomness.to_normal(randomness.uniform_hash(key, (1, *shape))[0])


class _Initializer:
  """`initial_value` in the form that Lingvo's CreateVariable takes."""

  def __init__(self, spec, seed):
    self._spec = spec
    self._seed = seed

  def __call__(self, shape, dtype=tf.float32, partition_info=None):
    del shape, partition_info
    return initial_value(self._spec, self._seed, dtype)


class Layer(base_layer.BaseLayer):
  """A Lingvo layer whose weights are declared with letters and initial values.

  `FProp` reads weights from the `theta` that it is given and never from the
  variables, so that the layer can be lowered with weights as arguments.

  Whatever a public method that takes `theta` computes is named after the layer's
  path, through to the metadata of the partitioned program.
  """

  def __init_subclass__(cls, **kwargs):
    super().__init_subclass__(**kwargs)
    for name, method in list(vars(cls).items()):
      if (not name.startswith('_') and inspect.isfunction(method)
          and 'theta' in inspect.signature(method).parameters):
        setattr(cls, name, _in_scope_of_layer(method))

  def CreateWeight(self, name: str, letters: str, shape: Sequence[int], init: Init,
                   trainable: bool = True):
    """Declares the weight `name` of this layer.

    Args:
      name: its key in `theta`.
      letters: one letter for each dimension, a key of the sharding table.
      shape: its global shape.
      init: its initial values.
      trainable: whether gradients change it; if not, the layer's `FProp` hands
        out new values as `updates`.

    Raises:
      ParamsError: `letters` and `shape` differ in length, or a size is not set.
    """
    if min(shape) < 1:
      raise ParamsError(f'weight {self.path}.{name} of shape {tuple(shape)}: set '
                        'every size in the Params of the layer to 1 at least')
    if len(letters) != len(shape):
      raise ParamsError(f'weight {self.path}.{name}: {len(letters)} letters '
                        f'{letters!r} for shape {tuple(shape)}')
    path = self._path_in_task() + name
    spec = WeightSpec(path, tuple(shape), letters, init, trainable=trainable)
    self.__dict__.setdefault('_weight_specs', {})[name] = spec
    sharding = {}
    here = xla_sharding.current()
    if here.mesh is not None:  # for Lingvo's own TPU executor
      # A dimension may lie along several axes of the mesh, and Lingvo's mapping names one for
      # each: so the weight gets a mesh of its own, with an axis for each of its dimensions.
      tiles, _ = here.mesh.tile_assignment(here.axes(letters))
      sharding = dict(device_mesh=tiles, tensor_split_dims_mapping=list(range(len(letters))))
    self.CreateVariable(name, py_utils.WeightParams(
        shape=list(shape), dtype=self.params.dtype,
        init=py_utils.WeightInit.CustomVarInit(
            _Initializer(spec, self.params.random_seed or 0)), **sharding), trainable=trainable)

  def StackedSpecs(self, specs: py_utils.NestedMap) -> py_utils.NestedMap:
    """The specs of this layer as its `theta` has them; a layer may stack some."""
    return specs

  def _Require(self, holds: bool, otherwise: str):
    """Raises ParamsError, of this layer, with the message `otherwise`."""
    if not holds:
      raise ParamsError(f'{self.path}: {otherwise}')

  def _path_in_task(self):
    """This layer's path, with a dot at the end, from the task it is part of."""
    root = self
    while root.parent is not None and not isinstance(root, base_model.BaseTask):
      root = root.parent
    return f'{self.path}.'[len(root.path) + 1:]


def scope(path: str):
  """A context in which operations are named after the layer at `path` in its task."""
  # The slash at the end means this very name: not below the scope of the layer
  # that calls, and without a number at the second call.
  return tf.name_scope(f'{path}/') if path else contextlib.nullcontext()


def _in_scope_of_layer(method):

  @functools.wraps(method)
  def wrapped(self, *args, **kwargs):
    with scope(self._path_in_task().rstrip('.')):
      return method(self, *args, **kwargs)

  return wrapped


def weight_specs(layer: base_layer.BaseLayer) -> py_utils.NestedMap:
  """The specs of all weights below `layer`, in the structure of its `theta`.

  Args:
    layer: an instantiated layer whose weights were all made by `CreateWeight`.

  Returns:
    A NestedMap of `WeightSpec`, with the keys of `layer.vars`.

  Raises:
    ValueError: a layer has a variable that was not declared by `CreateWeight`.
  """
  specs = py_utils.NestedMap(getattr(layer, '_weight_specs', {}))
  undeclared = set(layer._private_vars) - set(specs)  # pylint: disable=protected-access
  if undeclared:
    raise ValueError(f'{layer.path} has variables without letters and initial '
                     f'values: {sorted(undeclared)}; declare them by CreateWeight')
  for name, child in layer.children.items():
    specs[name] = ([weight_specs(c) for c in child] if isinstance(child, (list, tuple))
                   else weight_specs(child))
  return layer.StackedSpecs(specs) if isinstance(layer, Layer) else specs


def stack_specs(name: str, layers: list) -> py_utils.NestedMap:
  """One spec for the same weight of several layers.

  Args:
    name: what the layers' part of the path becomes, for instance `blocks_1::2`.
    layers: for each layer its specs, all alike but for one part of the path.

  Returns:
    A NestedMap like those of the layers, of stacked weights.

  Raises:
    ParamsError: the layers differ.
  """
  def stack(*specs):
    shapes = {(s.shape, s.letters, s.init, s.trainable) for s in specs}
    if len(shapes) > 1:
      raise ParamsError(f'{specs[0].path} and {specs[1].path} are to be one stacked weight and '
                       f'differ: {sorted(map(str, shapes))}')
    parts = [s.path.split('.') for s in specs]
    path = [column[0] if len(set(column)) == 1 else name for column in zip(*parts)]
    return specs[0]._replace(path='.'.join(path), shape=(len(specs), *specs[0].shape),
                             layers=tuple(s.path for s in specs))

  def walk(*nodes):
    if isinstance(nodes[0], WeightSpec):
      return stack(*nodes)
    if isinstance(nodes[0], list):
      return [walk(*items) for items in zip(*nodes, strict=True)]
    return py_utils.NestedMap({k: walk(*(n[k] for n in nodes)) for k in nodes[0]})

  return walk(*layers)


def pack(specs, theta):
  """Brings weights by path into the structure that layers take.

  Args:
    specs: from `weight_specs`, or a part of it.
    theta: a dict from path to tensor.

  Returns:
    NestedMaps and lists as in `specs`, with tensors in place of specs.
  """
  if isinstance(specs, WeightSpec):
    return theta[specs.path]
  if isinstance(specs, list):
    return [pack(s, theta) for s in specs]
  return py_utils.NestedMap({name: pack(s, theta) for name, s in specs.items()})


def pairs(tree, part):
  """Yields each leaf of `part` after the leaf of `tree` in its place; NestedMaps and lists."""
  if isinstance(part, (dict, list)):
    for key in part if isinstance(part, dict) else range(len(part)):
      yield from pairs(tree[key], part[key])
  else:
    yield tree, part


def flatten(specs) -> list[WeightSpec]:
  """The specs in `specs`, in order of their paths."""
  if isinstance(specs, WeightSpec):
    return [specs]
  below = specs if isinstance(specs, list) else specs.values()
  return sorted((w for s in below for w in flatten(s)), key=lambda w: w.path)
