"""Tests of gshard_tf.artifact."""

import dataclasses
import pathlib

import numpy as np
import pytest

from gshard_tf import artifact as artifact_lib
from tests import lowered

WEIGHTS = [
    artifact_lib.Weight('a.wi', (8, 3, 5), 'float32', (('expert',), (), ('model',)), 'emh'),
    artifact_lib.Weight('b.scale', (7,), 'bfloat16', ((),), 'm', trainable=False),
    artifact_lib.Weight('c.scalar', (), 'float32', ()),
    artifact_lib.Weight('d_0::2.wo', (2, 6, 4), 'float32', ((), (), ()), 'hm', ('d_0.wo', 'd_2.wo')),
]


def small(**changes):
  """An artifact of programs that nothing runs."""
  values = dict(
      model='m.Model', mesh_shape=(4, 2), mesh_axes=('expert', 'model'), weights=WEIGHTS,
      batch={'src': {'ids': (8, 24)}, 'tgt': {'ids': (8, 20)}}, batch_axes=('expert',),
      decode_rows=16, optimizer={'beta2': .99}, inputs={'Dev': 'data/dev.tsv'},
      vocabularies=lowered.VOCABULARIES, functions={'init': b'\x00one', 'train': b'two\xff'},
      languages=('de', 'fr'))
  return artifact_lib.Artifact(**values | changes)


def tree(value):
  """JSON has no tuples; what reads shapes takes lists as well."""
  return [tree(v) for v in value] if isinstance(value, (list, tuple)) else (
      {k: tree(v) for k, v in value.items()} if isinstance(value, dict) else value)


def test_num_parameters():
  assert small().num_parameters == 8 * 3 * 5 + 7 + 1 + 2 * 6 * 4
  assert lowered.artifact((2, 1)).num_parameters == sum(
      w.size for w in lowered.theta().values())


def test_a_model_of_more_parameters_than_int32_holds():
  weight = artifact_lib.Weight('wi', (2048, 1024, 8192), 'float32', ((), (), ()))
  assert small(weights=[weight] * 36).num_parameters == 36 * 2048 * 1024 * 8192


def test_what_is_saved_is_loaded(tmp_path):
  artifact, folder = small(), str(tmp_path / 'artifact')
  artifact.save(folder)
  loaded = artifact_lib.Artifact.load(folder)
  for field in dataclasses.fields(artifact):
    if field.name not in ('vocabularies', 'batch'):
      assert getattr(loaded, field.name) == getattr(artifact, field.name), field.name
  assert tree(loaded.batch) == tree(artifact.batch)
  assert all(isinstance(w, artifact_lib.Weight) for w in loaded.weights)
  for side, path in artifact.vocabularies.items():  # the folder's own copies
    assert pathlib.Path(loaded.vocabularies[side]).parent == tmp_path / 'artifact'
    assert pathlib.Path(loaded.vocabularies[side]).read_bytes() == pathlib.Path(path).read_bytes()


def test_a_loaded_artifact_saves_again(tmp_path):
  small().save(str(tmp_path / 'first'))
  first = artifact_lib.Artifact.load(str(tmp_path / 'first'))
  first.save(str(tmp_path / 'second'))
  files = lambda name: {f.name: f.read_bytes() for f in (tmp_path / name).iterdir()}
  assert files('first') == files('second')


def test_saving_replaces_the_whole_folder(tmp_path):
  folder = str(tmp_path / 'artifact')
  small().save(folder)
  small(model='m.Other', functions={'init': b'new'}).save(folder)
  loaded = artifact_lib.Artifact.load(folder)
  assert loaded.model == 'm.Other' and loaded.functions == {'init': b'new'}
  assert not (tmp_path / 'artifact' / 'train.jaxexport').exists()


@pytest.mark.parametrize('change', [
    {'vocabularies': {'source': 'no/such.model'}},  # fails early
    {'functions': {'init': 'text'}},  # in the middle
    {'optimizer': {'beta2': np.float32(1.)}},  # JSON has no such number: at the end
])
def test_a_failed_save_leaves_what_was_there(tmp_path, change):
  folder = str(tmp_path / 'artifact')
  small().save(folder)
  with pytest.raises((OSError, TypeError)):
    small(model='m.Other', **change).save(folder)
  assert artifact_lib.Artifact.load(folder).functions == small().functions
  assert artifact_lib.Artifact.load(folder).model == 'm.Model'
  small(model='m.Other').save(folder)  # what the failure left is not in the way
  assert artifact_lib.Artifact.load(folder).model == 'm.Other'
  assert [p.name for p in tmp_path.iterdir()] == ['artifact']


def test_an_empty_folder_holds_none(tmp_path):
  with pytest.raises(FileNotFoundError):
    artifact_lib.Artifact.load(str(tmp_path))
