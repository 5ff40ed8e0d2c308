"""A tiny model lowered for meshes, once for all tests, and the same model unlowered.

No two of its dimensions are alike, so that a shape in the text of a compiled
program tells which tensor it is.
"""

import functools
import itertools
import pathlib

import jax
from lingvo.core import cluster_factory
from lingvo.core import py_utils
import numpy as np
import tensorflow as tf

from gshard_tf import artifact as artifact_lib
from gshard_tf import lowering
from gshard_tf import train_step
from gshard_tf import xla_sharding
from gshard_tf.input import generator
from gshard_tf.input import tokenizer as tokenizers
from gshard_tf.layers import weights
from gshard_tf.params import sharding
from gshard_tf.runtime import loop
from gshard_tf.runtime import mesh as mesh_lib
from gshard_tf.runtime import program as program_lib
from model_registry import smoke

ROOT = pathlib.Path(__file__).parents[1]
DATA = ROOT / 'data'
VOCABULARIES = {side: str(DATA / f'vocabulary/{side}.model') for side in ('source', 'target')}


class Small(smoke.Tiny):
  """Tiny, with other shapes; an eighth of a table is less than a layer of experts."""
  ROWS, SOURCE_LENGTH, TARGET_LENGTH = 16, 24, 20
  HIDDEN_DIM = 72
  WARMUP_STEPS = 10


NAME = 'tests.lowered.Small'
SPARSE_LAYERS = 2  # one in the encoder, one in the decoder
LANGUAGES = ('de', 'fr', 'ja')  # that the artifact with `evaluate` tells apart


def rows_of_batch() -> dict:
  """The shapes of a batch, as the input generator makes it."""
  return generator.batch_shapes(Small().Train())


def structs(shapes, dtype=np.int32):
  """Shapes to jax.ShapeDtypeStructs."""
  return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, dtype), shapes,
                      is_leaf=lambda s: isinstance(s, tuple))


def random_batch(seed: int) -> dict:
  """Rows of random tokens: two segments of random lengths, then padding."""
  rng = np.random.default_rng(seed)
  batch = {}
  for side, vocab, length in (('src', Small.SOURCE_VOCAB, Small.SOURCE_LENGTH),
                              ('tgt', Small.TARGET_VOCAB, Small.TARGET_LENGTH)):
    first = rng.integers(1, length // 2, (Small.ROWS, 1))
    end = rng.integers(length // 2 + 1, length + 1, (Small.ROWS, 1))
    at = np.arange(length)[None]
    segments = np.where(at < first, 1, np.where(at < end, 2, 0))
    tokens = np.where(segments > 0, rng.integers(4, vocab, (Small.ROWS, length)), tokenizers.PAD)
    start = (at == 0) | (at == first)
    batch[side] = dict(ids=tokens, segment_ids=segments,
                       segment_pos=np.where(segments > 0, np.where(at < first, at, at - first), 0))
    if side == 'tgt':
      batch[side] |= dict(labels=tokens, ids=np.where(
          segments > 0, np.where(start, tokenizers.BOS, np.roll(tokens, 1, 1)), tokenizers.PAD))
  return jax.tree.map(lambda x: x.astype(np.int32), batch)


def held_out_batch(seed: int) -> dict:
  """A random batch in which every sentence of two segments has its language."""
  batch, rng = random_batch(seed), np.random.default_rng(seed)
  of_segment = rng.integers(0, len(LANGUAGES), (Small.ROWS, 2))
  for side in batch.values():
    number = np.maximum(side['segment_ids'] - 1, 0)
    side['language'] = np.take_along_axis(of_segment, number, 1).astype(np.int32)
  return batch


def data() -> loop.Data:
  """Endless random batches, whose positions lie three apart."""

  def train(position):
    for at in itertools.count(position, 3):
      yield random_batch(at) | {'position': at + 3}

  return loop.Data(train=train, unigram_nll=7.,
                   held_out=lambda: map(held_out_batch, (1001, 1002)))


def task(**constants):
  """Params of the task, with other constants of the class."""
  return type('Changed', (Small,), constants)().Task()


def mesh(mesh_shape) -> xla_sharding.Mesh:
  """A mesh to annotate for."""
  return xla_sharding.Mesh(mesh_shape, sharding.MESH_AXES)


def lower(mesh_shape, **changes) -> artifact_lib.Artifact:
  """Lowers the model, or fails to; `changes` are arguments of lower_task."""
  arguments = dict(
      name=NAME, task_params=task(), batch=rows_of_batch(), mesh=mesh(mesh_shape),
      inputs={'Dev': str(DATA / 'dev.tsv')}, vocabularies=VOCABULARIES)
  return lowering.lower_task(**arguments | changes)


@functools.cache
def artifact(mesh_shape) -> artifact_lib.Artifact:
  """The model lowered for a mesh; all of it for two devices, where most tests run."""
  if mesh_shape != (2, 1):
    return lower(mesh_shape, functions=['init', 'train'])
  return lower(mesh_shape, languages=LANGUAGES)


@functools.cache
def program(mesh_shape) -> program_lib.Program:
  """The artifact's functions on the mesh."""
  return program_lib.Program(
      artifact(mesh_shape), mesh_lib.make(mesh_shape, sharding.MESH_AXES))


@functools.cache
def steps(mesh_shape=None) -> train_step.Steps:
  """The step functions in TensorFlow; without a mesh no annotations."""
  return train_step.Steps(task(), mesh_shape and mesh(mesh_shape))


@functools.cache
def theta(seed=0) -> dict:
  """Random weights, NumPy by path; none is all zeros or all ones."""
  rng = np.random.default_rng(seed)
  drawn = {}
  for w in steps().specs:
    spread = w.init.stddev or 0.1
    drawn[w.path] = (w.init.mean + spread * rng.standard_normal(w.shape)).astype(np.float32)
  return drawn


@functools.cache
def talkative() -> dict:
  """Random weights under which sentences differ, go on changing, and end.

  A model of initial weights repeats its input: here the layers outweigh the
  residual, attention is sharp and knows positions, and eos scores high.
  """
  factors = {'wo': 4., 'wq': 6., 'relative_bias': 40.}
  drawn = {path: w * factors.get(path.rpartition('.')[2], 1.) for path, w in theta().items()}
  drawn['target_embedding.table'][tokenizers.EOS] *= 3.
  return drawn


class Unlowered:
  """The model run by TensorFlow, at evaluation, without a cache or annotations."""

  def __init__(self):
    with tf.Graph().as_default():
      self._task = task().Set(input=None).Instantiate()
      self._structure = weights.weight_specs(self._task)
    self.logits = tf.function(self._logits, autograph=False)

  def _logits(self, theta_by_path, batch):
    """float32 [B, L, V] of every target position."""
    with cluster_factory.SetEval(True):
      nested = py_utils.NestedMap({k: py_utils.NestedMap(v) for k, v in batch.items()})
      packed = weights.pack(self._structure, theta_by_path)
      return self._task.ComputePredictions(packed, nested).logits
