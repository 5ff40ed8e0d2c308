"""The command line, on small packages that stand in a cache."""

import dataclasses
import re

import pytest

from gshard_tf.corpus import catalogues
from gshard_tf.corpus import sources
from tools import build_corpus


@pytest.fixture
def run(gettext_package, json_package, monkeypatch, tmp_path):
  """Runs the tool on two packages; returns its status and the output directory."""
  monkeypatch.setattr(sources, 'SOURCES', (gettext_package[0], json_package[0]))

  def call(*flags, output='out'):
    argv = [f'--output={tmp_path / output}', f'--cache={tmp_path / "cache"}', '--packages=all',
            '--fewest_pairs=1', *flags]
    return build_corpus.main(argv), tmp_path / output

  return call


def test_it_writes_pairs_notice_and_description(run, capsys):
  status, output = run('--languages=de,fr,cs')
  lines = [line for split in ('train', 'dev', 'test')
           for line in (output / f'{split}.tsv').read_text(encoding='utf-8').splitlines()]
  assert status == 0
  assert 'fr\tSupprimer les pages sélectionnées\tDelete the selected pages' in lines
  assert len(lines) == 4
  notice = (output / 'NOTICE').read_text(encoding='utf-8')
  assert 'some-package 1.0' in notice and 'Do as you like.' in notice and '@scope/messages 2.0' in notice
  assert '| cs | Czech |' in (output / 'README.md').read_text(encoding='utf-8')
  printed = capsys.readouterr().out
  assert '4 pairs' in printed and 'dropped, untranslated' in printed


def test_it_writes_the_same_bytes_again(run):
  _, first = run('--languages=all', output='first')
  _, second = run('--languages=all', output='second')
  for file in first.glob('*.tsv'):
    assert file.read_bytes() == (second / file.name).read_bytes()


def test_it_overwrites_only_when_told(run, capsys):
  assert run()[0] == 0
  status, output = run()
  assert status == 2 and '--force' in capsys.readouterr().err
  (output / 'train.tsv').write_text('old')
  assert run('--force')[0] == 0
  assert (output / 'train.tsv').read_text(encoding='utf-8') != 'old'


@pytest.mark.parametrize('flag, said', [
    ('--languages=de,gr', 'unknown language "gr"'),
    ('--min_words=30', '--min_words=30 is above --max_words=20'),
    ('--pairs_per_language=-1', 'is negative'), ('--fewest_pairs=9999', 'do not fall'),
    ('--packages=some-pakage', 'did you mean "some-package"'),
    ('--held_out=0.6', 'leaves no training data'), ('--languages=zu', '0 pairs of 0 messages')])
def test_a_wrong_flag_is_one_line_and_status_2(run, capsys, flag, said):
  status, output = run(flag)
  error = capsys.readouterr().err
  assert status == 2 and said in error and error.count('\n') == 1
  assert not output.exists()


def test_an_unknown_flag_is_one_line_and_status_2(run, capsys):
  with pytest.raises(SystemExit) as stopped:
    run('--licences=none')
  assert stopped.value.code == 2
  assert capsys.readouterr().err.count('\n') == 1


def test_copyleft_packages_come_only_when_asked_for(run, gettext_package, monkeypatch, capsys):
  copyleft = dataclasses.replace(gettext_package[0], licence='GPL-3.0-or-later')
  monkeypatch.setattr(sources, 'SOURCES', (copyleft,))
  assert run()[0] == 2
  assert 'set --licences=all' in capsys.readouterr().err
  assert run('--licences=all')[0] == 0


@pytest.mark.parametrize('source', sources.SOURCES, ids=lambda source: source.name)
def test_every_row_of_the_table_is_well_formed(source):
  assert source.registry in ('pypi', 'npm') and source.version[0].isdigit() and source.holder
  assert 'language' in re.compile(source.pattern).groupindex
  assert source.reader == 'gettext' or source.reader in catalogues.KEYED_READERS
  assert source.permissive or 'GPL' in source.licence


def test_the_sample_is_made_of_permissive_packages():
  assert len(sources.choose(','.join(sources.SAMPLE))) == len(sources.SAMPLE)
