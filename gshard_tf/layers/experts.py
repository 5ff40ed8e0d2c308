"""The experts: E feed-forwards, each with weights of its own.

Dimensions: G groups, S tokens in a group, E experts, C capacity, Z slots (of a
group, or of an expert), D devices that the experts are split over, B tokens in a
block, M model, H hidden.
"""

from lingvo.core import py_utils
import tensorflow as tf

from gshard_tf import xla_sharding
from gshard_tf.layers import activations
from gshard_tf.layers import dropless
from gshard_tf.layers import gating
from gshard_tf.layers import randomness
from gshard_tf.layers import weights
from gshard_tf.xla_sharding import annotate

_MANY_ROWS = 128  # from here on, of 64, 128 and 1024 rows, XLA's order is not slower


@tf.custom_gradient
def product(x: tf.Tensor, w: tf.Tensor):
  """Each expert's rows times its weight.

  The gradient of few rows has the weights as the first factor. XLA's own order
  contracts the last dimension of the weights as the second factor, for which the
  CPU packs them anew, transposed: of 16 rows for each of 512 experts all products
  together then take twice as long. With many rows that is no loss, and a transpose
  of the rows would be one. (`python -m tools.bench moe`; docs/moe.md.)

  Args:
    x: [E, Z, M]; Z rows for each expert.
    w: [E, M, H].

  Returns:
    [E, Z, H].
  """
  def gradient(dy):
    if x.shape[1] >= _MANY_ROWS:
      dx = tf.matmul(dy, w, transpose_b=True)
    else:
      # Of three dimensions, XLA would fold the transpose into the other order.
      dx = tf.transpose(tf.einsum('emh,eozh->emoz', w, dy[:, None]), [0, 2, 3, 1])[:, 0]
    return dx, tf.matmul(x, dy, transpose_a=True)

  return tf.matmul(x, w), gradient


class Experts(weights.Layer):
  """The feed-forwards that the tokens of an MoE layer visit (2006.16668, section 2.2)."""

  @classmethod
  def Params(cls):
    p = super().Params()
    p.Define('model_dim', 0, 'M.')
    p.Define('hidden_dim', 0, 'H of one expert.')
    p.Define('num_experts', 0, 'E.')
    p.Define('activation', 'relu', activations.HELP)
    p.Define('dropout', 0., 'Probability that a hidden unit is dropped in training.')
    return p

  def __init__(self, params):
    super().__init__(params)
    p = self.params
    self._activation = activations.find(p.activation, self.path)
    for name in ('wi', 'wv') if self._activation.gated else ('wi',):
      self.CreateWeight(name, 'emh', (p.num_experts, p.model_dim, p.hidden_dim),
                        weights.Init.fan_in(p.model_dim, gain=2.))
    self.CreateWeight('wo', 'ehm', (p.num_experts, p.hidden_dim, p.model_dim),
                      weights.Init.fan_in(p.hidden_dim))

  def FProp(self, theta, x):
    """Computes each expert on its own slots.

    The change of annotation from the groups to the experts is what makes the
    partitioner send tokens between devices by an all-to-all, and back.

    Args:
      theta: weights; wi [E, M, H], wo [E, H, M], and if gated wv [E, M, H].
      x: [G, Z, M].

    Returns:
      [G, Z, M].
    """
    theta = theta.Transform(lambda w: tf.cast(w, x.dtype))
    groups, slots, dim = x.shape
    x = annotate(tf.reshape(x, [groups, self.params.num_experts, -1, dim]), 'gecm')
    x = annotate(tf.transpose(x, [1, 0, 2, 3]), 'egcm')
    # One dimension of rows: with few places of each group beside each other, the
    # hidden units would be laid out anew for every product on a TPU.
    x = annotate(tf.reshape(x, [self.params.num_experts, -1, dim]), 'ezm')
    h = self._activation.hidden(lambda w: annotate(product(x, w), 'ezh'), theta)
    h = randomness.dropout(self, h, self.params.dropout, 'ezh')
    y = annotate(product(h, theta.wo), 'ezm')
    y = annotate(tf.reshape(y, [self.params.num_experts, groups, -1, dim]), 'egcm')
    y = annotate(tf.transpose(y, [1, 0, 2, 3]), 'gecm')
    return annotate(tf.reshape(y, [groups, slots, dim]), 'gzm')

  def FPropDropless(self, theta, x, routing: gating.Routing):
    """Computes each token's experts, without slots.

    Args:
      theta: as for `FProp`.
      x: [G, S, M].
      routing: of G groups of S tokens.

    Returns:
      [G, S, M]; the experts' outputs weighted by the gates, summed.
    """
    theta = theta.Transform(lambda w: tf.cast(w, x.dtype))
    p = self.params
    drop = p.dropout and not self.do_eval
    names = ('wi', 'wv', 'wo') if self._activation.gated else ('wi', 'wo')

    def experts_of_block(x, gate, choice, values, *key):
      h = self._activation.hidden(
          lambda w: annotate(tf.matmul(x, w), 'dzh'), py_utils.NestedMap(zip(names, values)))
      if drop:
        row = tf.cast(choice, tf.uint32)[..., None]
        h = randomness.mask(h, randomness.uniform_rows(*key, row, p.hidden_dim), p.dropout)
      # With the gate here, rather than at the outputs, its gradient needs no outputs.
      return annotate(tf.matmul(h * gate, values[-1]), 'dzm')

    here = xla_sharding.current()
    devices = here.mesh.partitions(here.axes('emh')[0]) if here.mesh else 1
    return dropless.visit(
        experts_of_block, x, routing, [theta[n] for n in names],
        ['ehm' if n == 'wo' else 'emh' for n in names], devices,
        [randomness.step_key(self)] if drop else [])
