"""The Lingvo input generator: translation pairs from a file.

  params = TranslationInput.Params().Set(
      path='data/train.tsv', batch_size=8,
      source_model='data/vocabulary/source.model',
      target_model='data/vocabulary/target.model',
      source_length=128, target_length=128)
  generator = params.Instantiate()
  for batch in generator.Dataset(start=position):  # Eager.
    ...
  batch = generator.GetPreprocessedInputBatch()    # Lingvo's trainer, in a graph.
"""

import functools
import os

from lingvo.core import base_input_generator
from lingvo.core import datasource
from lingvo.core import py_utils

from gshard_tf.input import corpus as corpora
from gshard_tf.input import mixing
from gshard_tf.input import packing
from gshard_tf.input import pipeline
from gshard_tf.input import tokenizer as tokenizers


def batch_shapes(params):
  """The shapes of a packed batch, without reading a file.

  Args:
    params: Params of a `TranslationInput`.

  Returns:
    Nested dicts of src and tgt with the keys of `pipeline.training_batches`,
    and shapes (B, L).
  """
  shapes = lambda length, *names: {name: (params.batch_size, length) for name in names}
  return {'src': shapes(params.source_length, 'ids', 'segment_ids', 'segment_pos'),
          'tgt': shapes(params.target_length, 'ids', 'labels', 'segment_ids', 'segment_pos')}


class TranslationSource(datasource.TFDatasetSource):
  """Feeds Lingvo's trainer from the generator that owns it."""

  def GetDataset(self):
    """Returns the generator's dataset without `position` and `skipped`.

    Lingvo splits every tensor of a batch among devices by its first dimension,
    which these two scalars do not have.
    """
    dataset = self._input_generator.Dataset(host=self.host_id)
    return dataset.map(lambda batch: py_utils.NestedMap(
        {key: value for key, value in batch.items()
         if key not in ('position', 'skipped')}))


class TranslationInput(base_input_generator.BaseInputGenerator):
  """Sentence pairs of a corpus file, sampled without end or read once."""

  @classmethod
  def Params(cls):
    p = super().Params()
    p.Define('path', None,
             'Corpus file: language<TAB>source<TAB>english a line. This and the '
             'other paths start at the current directory.')
    p.Define('source_model', None, 'SentencePiece model of the source.')
    p.Define('target_model', None, 'SentencePiece model of the target.')
    p.Define('languages', None,
             'The language codes to read, or None for those of the file.')
    p.Define('temperature', 5.0,
             "Of the languages' shares in training: 1 keeps the natural ones, "
             'inf makes them equal.')
    p.Define('source_length', 128, 'Source tokens of a row.')
    p.Define('target_length', 128, 'Target tokens of a row.')
    p.Define('packing', True, 'Whether a row takes several sentences, or one.')
    p.Define('training', True,
             'Whether to sample sentences without end, or to read the file once.')
    p.Define('seed', 0, 'Another seed is another stream of training batches.')
    p.file_datasource = TranslationSource.Params()
    p.resettable = True
    return p

  def __init__(self, params):
    """Checks the parameters; the files are read when a dataset is made.

    Args:
      params: `Params` of this class.

    Raises:
      CorpusError, VocabularyError: a file is missing.
      ValueError: a length, a size or the temperature is out of range.
    """
    super().__init__(params)
    p = self.params
    packing.BatchFormat(p.batch_size, p.source_length, p.target_length)
    mixing.check_temperature(p.temperature)
    if p.use_per_host_infeed and not p.training:
      raise ValueError(
          'use_per_host_infeed is True with training False, and each host would '
          'evaluate all sentences; leave it False')
    self._CheckFiles()

  def _CheckFiles(self):
    """Raises an error that names the first missing file and its remedy."""
    p = self.params
    if not (p.path and os.path.isfile(p.path)):
      raise corpora.CorpusError(
          f'path {p.path}: no such corpus file; make it with '
          'python -m tools.build_corpus '
          f'--output={os.path.dirname(p.path or "") or "."} --cache=DIR')
    for name in ('source_model', 'target_model'):
      model = p.Get(name)
      if not (model and os.path.isfile(model)):
        raise tokenizers.VocabularyError(
            f'{name} {model}: no such vocabulary; make it with '
            f'python -m tools.train_vocabulary --corpus={p.path} '
            f'--output={os.path.dirname(model or "") or "."}')

  @functools.cached_property
  def corpus(self):
    """The `corpus.Corpus` of the languages that are read."""
    p = self.params
    corpus = corpora.read_corpus(p.path)
    return corpus if p.languages is None else corpus.select(p.languages)

  def Dataset(self, start=0, host=0):
    """The batches, for an eager loop.

    Args:
      start: the example to begin with, 0 or the `position` of a batch.
      host: number of the host with `use_per_host_infeed`; each samples a
        stream of its own.

    Returns:
      A `tf.data.Dataset` of the batches of `pipeline.training_batches`, or of
      `pipeline.evaluation_batches`, as NestedMaps.
    """
    p = self.params
    models = (p.source_model, p.target_model)
    batch_format = packing.BatchFormat(
        self.InfeedBatchSize(), p.source_length, p.target_length, p.packing)
    if p.training:
      batches = pipeline.training_batches(
          self.corpus, models, batch_format, temperature=p.temperature,
          seed=p.seed + (host << 32), start=start)
    else:
      batches = pipeline.evaluation_batches(
          self.corpus, models, batch_format, start=start)
    return batches.map(py_utils.NestedMap.FromNestedDict)

  def Reset(self, sess=None):
    """Starts again from the first batch, in a graph."""
    self.datasource.Reset(sess)
