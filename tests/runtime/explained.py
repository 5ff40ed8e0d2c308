"""Small TensorFlow functions, partitioned and explained."""

import jax
from jax import export
import numpy as np
import tensorflow as tf

from gshard_tf import lowering
from gshard_tf import xla_sharding
from gshard_tf.layers import weights
from gshard_tf.runtime import collectives
from gshard_tf.runtime import dataflow
from gshard_tf.runtime import explanation
from gshard_tf.runtime import partitioner
from gshard_tf.runtime import reshards

LAYER = 'encoder.ffn'


def annotate(x, letters, mesh, table):
  """Annotates by a table, inside the layer."""
  with xla_sharding.partitioning(mesh, table), weights.scope(LAYER):
    return xla_sharding.annotate(x, letters)


def explain(function, mesh, table, *shapes, **theta):
  """Compiles `function(theta, annotate, *inputs)` and explains its collectives.

  Args:
    function: takes a dict of weights, `annotate(x, letters)`, and tensors.
    mesh: an xla_sharding.Mesh of at most as many devices as there are.
    table: letters to mesh axes.
    *shapes: of the inputs, which every device has whole.
    **theta: for each weight its shape and its letters.

  Returns:
    The graph and for each collective, of the largest number of bytes first, it
    and its cause.
  """
  note = lambda x, letters: annotate(x, letters, mesh, table)

  def call(theta, *inputs):
    noted = {path: note(w, letters[path]) for path, w in theta.items()}
    with weights.scope(LAYER):
      return function(noted, note, *inputs)

  letters = {f'{LAYER}.{name}': l for name, (_, l) in theta.items()}
  specs = {f'{LAYER}.{name}': jax.ShapeDtypeStruct(s, np.float32) for name, (s, _) in theta.items()}
  inputs = [jax.ShapeDtypeStruct(s, np.float32) for s in shapes]
  devices = jax.sharding.Mesh(
      np.array(jax.devices()[:mesh.size]).reshape(mesh.shape), mesh.axis_names)
  exported = partitioner.prepare(
      export.deserialize(bytearray(lowering.lower(call, specs, *inputs))), devices)
  place = lambda axes: jax.sharding.NamedSharding(devices, jax.sharding.PartitionSpec(*axes))
  shardings = ({path: place(table[l]) for path, l in letters.items()}, *[place(())] * len(inputs))
  lowered = jax.jit(lambda theta, *inputs: exported.call(theta, *inputs),
                    in_shardings=shardings).lower(specs, *inputs)
  before, after, said = explanation.compiled(lowered)
  graph = dataflow.Graph(before, mesh, {LAYER: LAYER})
  whole = reshards.rematerialized(said)
  found = [(c, reshards.explain(c, graph, whole)) for c in collectives.read(after)]
  return graph, sorted(found, key=lambda pair: -pair[0].bytes)


def relu_layer(theta, note, x):
  """Two projections with their annotations."""
  h = tf.nn.relu(note(tf.einsum('bm,mh->bh', note(x, 'bm'), theta[f'{LAYER}.wi']), 'bh'))
  return note(tf.einsum('bh,hm->bm', h, theta[f'{LAYER}.wo']), 'bm')
