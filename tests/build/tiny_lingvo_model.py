"""A model of Lingvo's own layers, as small as its trainer accepts."""

from lingvo import compat as tf
from lingvo import model_registry
from lingvo.core import base_input_generator
from lingvo.core import base_model
from lingvo.core import base_model_params
from lingvo.core import layers
from lingvo.core import optimizer
from lingvo.core import py_utils

_BATCH, _DIM = 4, 8


class RandomInput(base_input_generator.BaseInputGenerator):
  """Random vectors to be mapped to their sums."""

  def _InputBatch(self):
    x = tf.random.stateless_normal([_BATCH, _DIM], seed=[1, 2])  # [B, D]
    return py_utils.NestedMap(x=x, y=tf.reduce_sum(x, axis=1))


class Regression(base_model.BaseTask):
  """A linear map, its shapes asserted as Lingvo's layers do."""

  def __init__(self, params):
    super().__init__(params)
    self.CreateChild(
        'linear',
        layers.ProjectionLayer.Params().Set(
            name='linear', input_dim=_DIM, output_dim=1, activation='NONE',
            batch_norm=False))

  def ComputePredictions(self, theta, input_batch):
    x = py_utils.HasShape(input_batch.x, [tf.shape(input_batch.y)[0], _DIM])
    x = py_utils.with_dependencies([
        py_utils.assert_shape_match(tf.shape(x), [-1, _DIM]),
        py_utils.assert_same_dim0([x, input_batch.y])], x)
    return tf.squeeze(self.linear.FProp(theta.linear, x), axis=-1)  # [B]

  def ComputeLoss(self, theta, predictions, input_batch):
    loss = tf.reduce_mean(tf.square(predictions - input_batch.y))
    return py_utils.NestedMap(loss=(loss, _BATCH)), py_utils.NestedMap()


@model_registry.RegisterSingleTaskModel
class Tiny(base_model_params.SingleTaskModelParams):
  """Trains for 20 steps and writes its checkpoint and summaries."""

  def Train(self):
    return RandomInput.Params().Set(name='input', batch_size=_BATCH)

  def Task(self):
    p = Regression.Params().Set(name='regression')
    p.train.Set(
        learning_rate=0.05, optimizer=optimizer.SGD.Params(), max_steps=20,
        tpu_steps_per_loop=10, summary_interval_steps=10)
    return p
