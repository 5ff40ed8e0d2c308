"""Small programs compiled for TPU topologies, for tests of what is read from them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from gshard_tf.runtime import aot

LAYERS, ROWS, WIDTH = 5, 2048, 512


@functools.cache
def mesh(topology='v3:2x2') -> jax.sharding.Mesh:
  """All cores of a slice along one axis."""
  aot.prepare()
  return aot.topology_mesh(topology, None, ('d',))


def layer(x, w):
  """A product of matrices, [rows, width], after which rows and columns change places on the mesh."""
  with jax.named_scope('encoder.blocks_1'):
    split = lambda x, *axes: jax.lax.with_sharding_constraint(
        x, jax.sharding.NamedSharding(mesh(), jax.sharding.PartitionSpec(*axes)))
    return split(jnp.tanh(split(x @ w, None, 'd')), 'd', None)


def looped(w, x):
  """float32 [layers, width, width] and [rows, width] -> []: the layers in a loop."""
  return jnp.sum(jax.lax.scan(lambda x, w: (layer(x, w), ()), x, w)[0])


def unrolled(w, x):
  """As `looped`, one layer after another."""
  for i in range(w.shape[0]):
    x = layer(x, w[i])
  return jnp.sum(x)


def lower(function, *shapes):
  """Lowered for v3:2x2: the last argument by rows, all others whole on each core."""
  axes = [()] * (len(shapes) - 1) + [('d',)]
  shardings = tuple(jax.sharding.NamedSharding(mesh(), jax.sharding.PartitionSpec(*a)) for a in axes)
  return jax.jit(function, in_shardings=shardings).lower(
      *(jax.ShapeDtypeStruct(s, np.float32) for s in shapes))


@functools.cache
def compiled(function):
  """`looped` or `unrolled`, or the gradient of one, compiled."""
  return lower(function, (LAYERS, WIDTH, WIDTH), (ROWS, WIDTH)).compile()
