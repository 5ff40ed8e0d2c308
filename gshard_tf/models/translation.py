"""The translation model: a Transformer encoder-decoder as a Lingvo task.

Dimensions: B rows, L target positions, T source positions, M model, V target
vocabulary, N heads, K size of a head. A row holds one or several sentences;
segment ids tell them apart (1 and up, 0 is padding).
"""

from lingvo.core import base_model
from lingvo.core import py_utils
from lingvo.core import summary_utils
import tensorflow as tf

from gshard_tf.layers import embedding
from gshard_tf.layers import expert_metrics
from gshard_tf.layers import randomness
from gshard_tf.layers import transformer
from gshard_tf.layers import weights
from gshard_tf.xla_sharding import annotate


class TranslationModel(base_model.BaseTask):
  """Sentences of many languages into one."""

  @classmethod
  def Params(cls):
    p = super().Params()
    p.Define('source_embedding', embedding.Embedding.Params(), 'Of source tokens.')
    p.Define('target_embedding', embedding.Embedding.Params(),
             'Of target tokens, shared with the softmax.')
    p.encoder = transformer.Stack.Params()
    p.decoder = transformer.Stack.Params()
    p.Define('label_smoothing', 0.1, 'Share of the target spread over the vocabulary.')
    p.Define('dropout', 0., 'Probability that an element of an embedding is dropped.')
    p.Define('decode_rows', 0, 'Rows of one decoding step: sentences times beam.')
    p.Define('sharding_table', {}, 'Einsum letters to mesh axes, see xla_sharding.')
    p.Define('mesh_axes', ('expert', 'model'), 'Names of the axes of the mesh.')
    p.Define('model_partitions', 1,
             'Size of the last mesh axis where only the number of devices is given.')
    p.Define('microbatches', 1, 'Parts of a batch whose gradients are summed one by one.')
    p.Define('num_languages', 0, 'Languages that the use of experts is measured by, in batches '
             'that tell them.')
    p.name = 'translation'
    return p

  def __init__(self, params):
    super().__init__(params)
    p = self.params
    self._updates = py_utils.NestedMap()  # of the latest ComputePredictions
    self.CreateChild('source_embedding', p.source_embedding)
    self.CreateChild('target_embedding', p.target_embedding)
    self.CreateChild('encoder', p.encoder)
    self.CreateChild('decoder', p.decoder)

  def ComputePredictions(self, theta, input_batch):
    """Computes the logits of every target position.

    Args:
      theta: weights.
      input_batch: a NestedMap with src.ids and src.segment_ids int32 [B, T], and
        tgt.ids and tgt.segment_ids int32 [B, L]. If num_languages is not 0 also with
        src.language int32 [B, T] and tgt.language int32 [B, L], numbers of the
        languages of the tokens' sentences.

    Returns:
      A NestedMap with logits [B, L, V]; aux_loss float32 [], the routers' losses
      weighted, a mean over layers; metrics, a flat dict from names such as
      `experts/encoder.blocks_1/load` to pairs of value and weight, see
      `layers.expert_metrics`; and updates, a NestedMap that is a part of `theta`,
      of new values of weights that no gradient changes.
    """
    batch = _annotate_batch(input_batch)
    src, tgt = batch.src, batch.tgt
    encoded = self._Encode(theta, src)
    x = self._Embed(self.target_embedding, theta.target_embedding, tgt.ids)
    context = py_utils.NestedMap(
        paddings=_paddings(tgt.segment_ids), ids=tgt.ids,
        self_mask=_same_segment(tgt.segment_ids, tgt.segment_ids),
        encoded=encoded.y,
        cross_mask=_same_segment(tgt.segment_ids, src.segment_ids), **self._Language(tgt))
    decoded = self.decoder.FProp(theta.decoder, x, context)
    self._updates = py_utils.NestedMap(encoder=encoded.updates, decoder=decoded.updates)
    return py_utils.NestedMap(
        logits=self.target_embedding.Logits(theta.target_embedding, decoded.y),
        aux_loss=(encoded.aux_loss + decoded.aux_loss) / 2.,
        metrics={f'experts/{stack}.blocks_{i}/{name}': pair
                 for stack, out in (('encoder', encoded), ('decoder', decoded))
                 for i, metrics in out.metrics.items() for name, pair in metrics.items()},
        updates=self._updates)

  def ComputeLoss(self, theta, predictions, input_batch):
    """Computes the loss.

    Args:
      theta: weights.
      predictions: from `ComputePredictions`.
      input_batch: also with tgt.labels int32 [B, L].

    Returns:
      Metrics, a NestedMap from names to (value, weight): loss, what is
      minimised, per token; nll, the cross entropy in nats per token without
      smoothing; aux_loss; and those of the layers that are one number. And an
      empty NestedMap.
    """
    del theta
    p = self.params
    tgt = _annotate_batch(input_batch).tgt
    weight = 1. - _paddings(tgt.segment_ids)
    tokens = tf.reduce_sum(weight)
    smoothed, nll = embedding.cross_entropy(predictions.logits, tgt.labels, p.label_smoothing)
    mean = lambda x: tf.reduce_sum(x * weight) / tf.maximum(tokens, 1.)
    loss = mean(smoothed) + predictions.aux_loss
    metrics = py_utils.NestedMap(
        loss=(loss, tokens), nll=(mean(nll), tokens),
        aux_loss=(predictions.aux_loss, tf.ones([])))
    for name, (value, weight) in predictions.metrics.items():
      if not value.shape.rank:
        metrics[name] = (value, weight)
    return metrics, py_utils.NestedMap()

  def FPropTower(self, theta, input_batch):
    """As Lingvo's, with the loads of the experts in its trainers' summaries."""
    predictions = self.ComputePredictions(theta, input_batch)
    metrics, per_example = self.ComputeLoss(theta, predictions, input_batch)
    for name, (value, _) in predictions.metrics.items():
      if value.shape.rank:
        summary_utils.histogram(name, value)
        metrics[f'{name.rpartition("/")[0]}/dead'] = (expert_metrics.dead(value), tf.ones([]))
    return metrics, per_example

  def PostTrainingStepUpdate(self):
    """Assigns the updates of the step to the variables; Lingvo's trainers call it."""
    return tf.group(super().PostTrainingStepUpdate(), *(
        variable.assign(value) for variable, value in weights.pairs(self.vars, self._updates)))

  def Encode(self, theta, ids):
    """Encodes sentences, one in a row, for decoding.

    Args:
      theta: weights.
      ids: int32 [B, T], 0 at padding.

    Returns:
      A NestedMap of what every step needs, with leading dimension B: cross, for
      each decoder block the keys and values k, v [B, T, N, K]; and mask
      bool [B, T].
    """
    segment_ids = tf.cast(ids > 0, tf.int32)
    encoded = self._Encode(theta, py_utils.NestedMap(ids=ids, segment_ids=segment_ids))
    return py_utils.NestedMap(
        cross=self.decoder.KeysAndValues(theta.decoder, encoded.y), mask=ids > 0)

  def EmptyCaches(self, rows, length):
    """Caches for `ExtendStep`, for each decoder block k, v [rows, length, N, K]."""
    caches = []
    for block in self.params.decoder.blocks:
      a = block.self_attention
      zeros = tf.zeros([rows, length, a.num_heads, a.head_dim], py_utils.FPropDtype(self.params))
      caches.append(py_utils.NestedMap(k=zeros, v=zeros))
    return caches

  def ExtendStep(self, theta, source, caches, ids, t):
    """Scores the token after position t, given the cache of those before it.

    Args:
      theta: weights.
      source: from `Encode`.
      caches: for each decoder block its keys and values; from `EmptyCaches`.
      ids: int32 [B], the tokens at position t.
      t: int32 [].

    Returns:
      logits [B, V] and the new caches.
    """
    x = self._Embed(self.target_embedding, theta.target_embedding, ids[:, None])
    y, caches = self.decoder.ExtendStep(
        theta.decoder, x, caches, t, source.cross, source.mask[:, None], ids[:, None])
    logits = self.target_embedding.Logits(theta.target_embedding, y)
    return logits[:, 0], caches

  def _Encode(self, theta, src):
    x = self._Embed(self.source_embedding, theta.source_embedding, src.ids)
    return self.encoder.FProp(theta.encoder, x, py_utils.NestedMap(
        paddings=_paddings(src.segment_ids), ids=src.ids,
        self_mask=_same_segment(src.segment_ids, src.segment_ids), **self._Language(src)))

  def _Language(self, side):
    """What a stack's context has of languages."""
    languages = self.params.num_languages
    if not languages or 'language' not in side:
      return {}
    # The letters of another tensor that is whole along its last dimension.
    return dict(language=annotate(tf.one_hot(side.language, languages), 'blm'))

  def _Embed(self, layer, theta, ids):
    x = tf.cast(layer.Lookup(theta, ids), py_utils.FPropDtype(self.params))
    return randomness.dropout(self, x, self.params.dropout, 'blm')


def _annotate_batch(batch):
  batch = py_utils.NestedMap(src=batch.src, tgt=batch.tgt)
  return batch.Transform(lambda x: annotate(x, 'bl'))


def _paddings(segment_ids):
  return tf.cast(tf.equal(segment_ids, 0), tf.float32)


def _same_segment(queries, keys):
  """int32 [B, L] and [B, T] -> bool [B, L, T]; padding sees padding alone."""
  return tf.equal(queries[:, :, None], keys[:, None])  # `==` compares objects in a tf.Graph
