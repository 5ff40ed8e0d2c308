"""Tests of gshard_tf.input.generator."""

from lingvo.core import cluster
from lingvo.core import py_utils
import numpy as np
import pytest
import tensorflow as tf

from gshard_tf.input import corpus as corpora
from gshard_tf.input import generator
from gshard_tf.input import tokenizer as tokenizers
from tests.input.rows import assert_same
from tests.input.rows import read


@pytest.fixture(name='params')
def _params(world):
  return generator.TranslationInput.Params().Set(
      path=str(world.path), source_model=str(world.models[0]),
      target_model=str(world.models[1]), batch_size=6, source_length=48,
      target_length=40, seed=9)


def without_scalars(batches):
  """The batches as Lingvo's trainer gets them."""
  return [batch.FilterKeyVal(lambda key, _: key not in ('position', 'skipped'))
          for batch in batches]


def test_a_graph_reads_the_batches_of_the_dataset(params):
  eager = without_scalars(read(params.Instantiate().Dataset(), 12))
  with tf.Graph().as_default():
    inputs = params.Instantiate()
    batch = inputs.GetPreprocessedInputBatch()
    assert isinstance(batch, py_utils.NestedMap)
    assert all(value.shape.is_fully_defined() for value in batch.Flatten())
    assert batch.src.ids.shape == (6, 48) and batch.tgt.ids.shape == (6, 40)
    with tf.compat.v1.Session() as session:
      inputs.Initialize(session)
      assert_same([session.run(batch) for _ in eager], eager)


def test_a_graph_evaluates_the_file_once_and_again_after_a_reset(params):
  params.Set(training=False, packing=False)
  eager = without_scalars(read(params.Instantiate().Dataset()))
  with tf.Graph().as_default():
    inputs = params.Instantiate()
    batch = inputs.GetPreprocessedInputBatch()
    with tf.compat.v1.Session() as session:
      inputs.Initialize(session)
      for _ in range(2):
        assert_same([session.run(batch) for _ in eager], eager)
        with pytest.raises(tf.errors.OutOfRangeError):
          session.run(batch)
        inputs.Reset(session)


def test_lingvo_can_split_a_batch_among_devices(params):
  whole = read(params.Instantiate().Dataset(), 1)[0]
  with tf.Graph().as_default():
    inputs = params.Instantiate()
    splits = inputs.SplitInputBatch(3)
    with tf.compat.v1.Session() as session:
      inputs.Initialize(session)
      parts = session.run(splits)
  np.testing.assert_array_equal(
      np.concatenate([part.src.ids for part in parts]), whole.src.ids)


def test_the_dataset_resumes_from_a_position(params):
  inputs = params.Instantiate()
  batches = read(inputs.Dataset(), 12)
  for done in (1, 6):
    start = int(batches[done - 1].position)
    assert_same(read(inputs.Dataset(start=start), 12 - done), batches[done:])


def test_each_host_samples_a_stream_of_its_own(params):
  params.use_per_host_infeed = True
  inputs = params.Instantiate()
  hosts = [read(inputs.Dataset(host=host), 2) for host in (0, 1)]
  assert np.any(hosts[0][0].src.ids != hosts[1][0].src.ids)
  with tf.Graph().as_default():
    inputs = params.Instantiate()
    with cluster.InfeedContextScope(infeed_host_index=1, num_infeed_hosts=2):
      batch = inputs.GetPreprocessedInputBatch()
    with tf.compat.v1.Session() as session:
      inputs.Initialize(session)
      assert_same([session.run(batch) for _ in range(2)],
                  without_scalars(hosts[1]))


def test_chosen_languages_are_read_alone(params):
  params.Set(languages=['cc', 'aa'], packing=False)
  inputs = params.Instantiate()
  assert inputs.corpus.languages == ('aa', 'cc')
  seen = {code for batch in read(inputs.Dataset(), 20) for code in batch.language}
  assert seen == {0, 1}


def test_relative_paths_start_at_the_current_directory(params, world, monkeypatch):
  monkeypatch.chdir(world.path.parent)
  relative = params.Copy().Set(path='train.tsv', source_model='source.model',
                               target_model='target.model')
  assert_same(read(relative.Instantiate().Dataset(), 2),
              read(params.Instantiate().Dataset(), 2))


@pytest.mark.parametrize('name, value, error, message', [
    ('path', 'data/no.tsv', corpora.CorpusError,
     'path data/no.tsv: no such .*python -m tools.build_corpus --output=data'),
    ('path', None, corpora.CorpusError, 'path None: no such corpus file'),
    ('source_model', 'v/s.model', tokenizers.VocabularyError,
     'source_model v/s.model: .*python -m tools.train_vocabulary .*--output=v'),
    ('target_model', None, tokenizers.VocabularyError, 'target_model None'),
    ('source_length', 1, ValueError, 'source_length is 1, not >= 2'),
    ('batch_size', 0, ValueError, 'batch_size is 0, not >= 1'),
    ('temperature', 0, ValueError, 'temperature is 0, not > 0'),
])
def test_a_bad_parameter_is_refused_at_construction(
    params, name, value, error, message):
  params.Set(**{name: value})
  with pytest.raises(error, match=message) as caught:
    params.Instantiate()
  assert '\n' not in str(caught.value)


def test_hosts_that_would_all_evaluate_everything_are_refused(params):
  params.Set(training=False, use_per_host_infeed=True)
  with pytest.raises(ValueError, match='use_per_host_infeed is True'):
    params.Instantiate()
