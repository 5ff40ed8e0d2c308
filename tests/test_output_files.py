"""Files of results."""

import argparse
import os

import pytest

from gshard_tf import output_files


@pytest.mark.parametrize('flags, path', [([], None), (['--json'], '-'), (['--json=f'], 'f')])
def test_where_json_goes(flags, path):
  parser = argparse.ArgumentParser()
  output_files.add_json(parser)
  assert parser.parse_args(flags).json == path


def test_what_is_there_stays_until_there_is_more(tmp_path):
  path = tmp_path / 'f'
  path.write_text('an older and longer result')
  outputs = output_files.OutputFiles(str(path), None)
  assert path.read_text() == 'an older and longer result'
  outputs.write(str(path), 'new')
  outputs.write(None, 'lost')
  assert path.read_text() == 'new\n'


def test_standard_output(capsys):
  output_files.OutputFiles('-').write('-', 'new')
  assert capsys.readouterr().out == 'new\n'


def test_a_pipe():
  read, write = os.pipe()
  path = f'/dev/fd/{write}'
  output_files.OutputFiles(path).write(path, 'new')
  assert os.read(read, 10) == b'new\n'


def test_it_is_told_before_the_work(tmp_path):
  with pytest.raises(OSError, match='nowhere'):
    output_files.OutputFiles(str(tmp_path / 'nowhere' / 'f'))
