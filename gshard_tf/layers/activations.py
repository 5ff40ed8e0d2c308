"""What lies between the two projections of a feed-forward, dense or of experts.

Dimensions: M model, H hidden.
"""

import difflib
from typing import Callable, NamedTuple

import tensorflow as tf


class Activation(NamedTuple):
  """An activation of hidden units.

  Attributes:
    function: elementwise.
    gated: whether the hidden units are `function(x wi) * (x wv)`, with a third
      weight, rather than `function(x wi)`.
  """
  function: Callable[[tf.Tensor], tf.Tensor]
  gated: bool

  def hidden(self, project: Callable[[tf.Tensor], tf.Tensor], theta) -> tf.Tensor:
    """The hidden units.

    Args:
      project: from a weight to the product of the inputs with it.
      theta: has the weights wi and, if gated, wv.

    Returns:
      What `project` returns, activated.
    """
    h = self.function(project(theta.wi))
    return h * project(theta.wv) if self.gated else h


def _gelu(x):
  return tf.nn.gelu(x, approximate=False)


ACTIVATIONS = {
    'relu': Activation(tf.nn.relu, gated=False),  # 1706.03762, and 2006.16668
    'gelu': Activation(_gelu, gated=False),  # 1606.08415
    'geglu': Activation(_gelu, gated=True),  # 2002.05202
    'swiglu': Activation(tf.nn.silu, gated=True),  # 2002.05202
}

HELP = f'One of {", ".join(ACTIVATIONS)}; the last two have a third weight, wv.'


def find(name: str, path: str) -> Activation:
  """The activation `name`.

  Args:
    name: a key of `ACTIVATIONS`.
    path: of the layer that asks, for the message.

  Returns:
    The activation.

  Raises:
    ValueError: there is none of that name.
  """
  if name not in ACTIVATIONS:
    near = difflib.get_close_matches(str(name), ACTIVATIONS, n=1)
    hint = f'; did you mean {near[0]!r}?' if near else ''
    raise ValueError(f'{path}: activation is {name!r}; choose one of {", ".join(ACTIVATIONS)}{hint}')
  return ACTIVATIONS[name]
