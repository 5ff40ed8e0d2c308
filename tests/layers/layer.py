"""Layers without variables, and weights for them."""

import contextlib

from lingvo.core import cluster_factory
from lingvo.core import py_utils
import numpy as np
import tensorflow as tf

from gshard_tf.layers import weights


def make(params):
  """Instantiates a layer in a graph of its own, where its variables stay."""
  with tf.Graph().as_default():
    py_utils.GetOrCreateGlobalStepVar()
    return params.Copy().Set(name='layer').Instantiate()


def draw(layer, seed):
  """Random weights, those too whose initial value is constant; theta of `layer`."""
  rng = np.random.default_rng(seed)
  specs = weights.weight_specs(layer)
  return weights.pack(specs, {
      w.path: normal(rng, *w.shape, scale=w.init.stddev or .5, mean=w.init.mean)
      for w in weights.flatten(specs)})


def normal(rng, *shape, scale=1., mean=0.):
  return tf.constant(mean + scale * rng.standard_normal(shape), tf.float32)


def as_float64(theta):
  return theta.Transform(lambda w: w.numpy().astype(np.float64))


def evaluation():
  """As at evaluation and decoding: nothing is random."""
  return cluster_factory.SetEval(True)


@contextlib.contextmanager
def training(step=0, seed=0):
  """As in a training step; the same step and seed draw the same numbers."""
  with py_utils.GlobalStepContext(tf.constant(step, tf.int64)):
    py_utils.ResetStepSeed(tf.constant(seed, tf.int64))
    yield
