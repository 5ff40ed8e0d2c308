"""The steps of a model as pure functions of weights, batch and seed.

Each function takes weights as a dict from path to tensor, and none reads a
variable: the model is instantiated once in a graph of its own, to learn its
weights' shapes and initial values, and no weight is ever made there. A model of
600B parameters costs no memory to describe.
"""

from lingvo.core import cluster_factory
from lingvo.core import py_utils
import tensorflow as tf

from gshard_tf import xla_sharding
from gshard_tf.layers import weights

_MICROBATCH_SEEDS = 1 << 20  # more step seeds than a microbatch draws with


class Steps:
  """Pure step functions of a translation task.

  Attributes:
    params: the task's Params.
    partitioning: the mesh and table that the functions annotate with.
    specs: the weights, in order of their paths.
  """

  def __init__(self, task_params, mesh: xla_sharding.Mesh | None):
    """Describes the task.

    Args:
      task_params: Params of a task with the methods of
        `models.translation.TranslationModel`.
      mesh: the mesh to annotate for, or None for no annotations.
    """
    self.params = task_params.Copy().Set(input=None)
    self.partitioning = xla_sharding.Partitioning(mesh, task_params.sharding_table)
    with tf.Graph().as_default():
      py_utils.GetOrCreateGlobalStepVar()
      self._task = self.params.Instantiate()
      self._structure = weights.weight_specs(self._task)
    self.specs = weights.flatten(self._structure)

  def init(self, seed):
    """Draws initial weights.

    Args:
      seed: int32 [].

    Returns:
      A dict from path to weight, each annotated.
    """
    with self._context():
      return {w.path: w.annotate(weights.initial_value(w, seed, self.params.dtype))
              for w in self.specs}

  def train(self, theta, batch, step, seed):
    """The loss of a batch, its gradients, and metrics.

    Args:
      theta: a dict from path to weight.
      batch: nested dicts of int32 [B, L], see `ComputePredictions`.
      step: int32 [], the global step; with `seed` it determines dropout and the
        random choice of experts.
      seed: int32 [].

    Returns:
      A dict of grads, a dict like `theta` of the trainable weights; metrics, a
      dict of float32 scalars, among which is `loss`, and of the experts' loads
      [E]; and updates, new values of the other weights.
    """
    with self._context(), py_utils.GlobalStepContext(step):
      seed = tf.cast(seed, tf.int64)
      if self.params.microbatches == 1:
        py_utils.ResetStepSeed(seed)
        return self._gradients(theta, batch, 1., 1.)[0]
      return self._accumulate(theta, batch, seed)

  def _gradients(self, theta, batch, share, aux_share):
    """What `train` returns, and the metrics' weights.

    Args:
      theta: a dict from path to weight.
      batch: a batch or a microbatch.
      share: factor of the cross entropy in what is differentiated.
      aux_share: factor of the routers' losses.

    Returns:
      Grads, metrics and updates, see `train`; a dict from metric to its weight.
    """
    trainable = {w.path: theta[w.path] for w in self.specs if w.trainable}
    with tf.GradientTape() as tape:
      tape.watch(list(trainable.values()))
      metrics, updates = self._metrics(theta, batch)
      aux = metrics.aux_loss[0]
      loss = share * (metrics.loss[0] - aux) + aux_share * aux
    grads = tape.gradient(loss, trainable, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return {'grads': {k: tf.convert_to_tensor(g) for k, g in grads.items()},
            'metrics': {name: value for name, (value, _) in metrics.items()} | {'loss': loss},
            'updates': {w.path: value for w, value in weights.pairs(self._structure, updates)}
            }, {name: weight for name, (_, weight) in metrics.items()}

  def _accumulate(self, theta, batch, seed):
    """As `train`, microbatch by microbatch, of every device's rows a part each.

    The gradient is that of the whole batch but for the routing, whose groups are
    smaller; updates are the mean of the microbatches'.
    """
    parts = self.params.microbatches
    tokens = tf.reduce_sum(tf.cast(batch['tgt']['segment_ids'] > 0, tf.float32))

    def part(x, i):
      rows, length = x.shape
      taken = tf.slice(tf.reshape(x, [rows // parts, parts, length]), [0, i, 0],
                       [rows // parts, 1, length])
      return xla_sharding.annotate(tf.reshape(taken, [rows // parts, length]), 'bl')

    def one(i):
      """Everything to be summed, of microbatch i."""
      py_utils.ResetStepSeed(seed + tf.cast(i, tf.int64) * _MICROBATCH_SEEDS)
      micro = tf.nest.map_structure(lambda x: part(x, i), batch)
      here = tf.reduce_sum(tf.cast(micro['tgt']['segment_ids'] > 0, tf.float32))
      out, counts = self._gradients(theta, micro, here / tf.maximum(tokens, 1.), 1. / parts)
      counts = counts | {'loss': tf.ones([])}
      out['metrics'] = {k: v if k == 'loss' else v * counts[k] for k, v in out['metrics'].items()}
      out['updates'] = {k: v / parts for k, v in out['updates'].items()}
      return out | {'counts': counts}

    spec = tf.function(one, autograph=False).get_concrete_function(
        tf.TensorSpec([], tf.int32)).structured_outputs
    zeros = tf.nest.map_structure(lambda t: tf.zeros(t.shape, t.dtype), spec)
    add = lambda total, i: tf.nest.map_structure(tf.add, total, one(i))
    _, total = tf.while_loop(lambda i, _: i < parts, lambda i, total: (i + 1, add(total, i)),
                             (tf.constant(0), zeros))
    mean = lambda name, value: value if name == 'loss' else value / tf.maximum(
        total['counts'][name], 1e-9)
    annotated = {w.path: w.annotate(total['grads'][w.path]) for w in self.specs if w.trainable}
    return {'grads': annotated, 'updates': total['updates'],
            'metrics': {k: mean(k, v) for k, v in total['metrics'].items()}}

  def evaluate(self, theta, batch):
    """The metrics of a batch without randomness.

    Args:
      theta: a dict from path to weight.
      batch: as for `train`; with `language` on both sides, int32 [B, L], where
        the task has num_languages.

    Returns:
      A dict from each metric's name to float32 [2, ...]: value and weight, of
      which a corpus's metric is the weighted mean.
    """
    with self._context(), cluster_factory.SetEval(True):
      metrics, _ = self._metrics(theta, batch)
      return {name: tf.stack([value, tf.broadcast_to(weight, value.shape)])
              for name, (value, weight) in metrics.items()}

  def encode(self, theta, ids):
    """Encodes sentences for decoding.

    Args:
      theta: a dict from path to weight.
      ids: int32 [B, T], a sentence in each row.

    Returns:
      Nested dicts and lists of tensors with leading dimension B, to be given to
      `decode`.
    """
    with self._context(), cluster_factory.SetEval(True):
      source = self._task.Encode(self._pack(theta), xla_sharding.annotate(ids, 'bl'))
      return _plain(source)

  def decode(self, theta, source, caches, ids, t):
    """Scores the next token of every row.

    Args:
      theta: a dict from path to weight.
      source: from `encode`.
      caches: a list for each decoder block of dicts of k, v [B, L, N, K].
      ids: int32 [B], tokens at position t.
      t: int32 [].

    Returns:
      logits float32 [B, V] and the new caches.
    """
    with self._context(), cluster_factory.SetEval(True):
      logits, caches = self._task.ExtendStep(
          self._pack(theta), _nested(source), _nested(caches), ids, t)
      return tf.cast(logits, tf.float32), _plain(caches)

  def empty_caches(self, rows: int, length: int):
    """Caches of zeros for `decode`."""
    return _plain(self._task.EmptyCaches(rows, length))

  def _metrics(self, theta, batch):
    theta, batch = self._pack(theta), _nested(batch)
    predictions = self._task.ComputePredictions(theta, batch)
    metrics, _ = self._task.ComputeLoss(theta, predictions, batch)
    return py_utils.NestedMap(predictions.metrics | metrics), predictions.updates

  def _pack(self, theta):
    """Annotates weights, and through them their gradients; nests them."""
    return weights.pack(self._structure, {
        w.path: w.annotate(theta[w.path]) for w in self.specs})

  def _context(self):
    return xla_sharding.partitioning(*self.partitioning)


def _nested(tree):
  """Dicts to NestedMaps, below lists too."""
  if isinstance(tree, dict):
    return py_utils.NestedMap({k: _nested(v) for k, v in tree.items()})
  return [_nested(t) for t in tree] if isinstance(tree, (list, tuple)) else tree


def _plain(tree):
  """NestedMaps to dicts, below lists too."""
  if isinstance(tree, dict):
    return {k: _plain(v) for k, v in tree.items()}
  return [_plain(t) for t in tree] if isinstance(tree, (list, tuple)) else tree
