"""Reports by other processes: what becomes of those that fail."""

import subprocess

import pytest

from tools import processes


@pytest.mark.parametrize('status, said, part', [
    (-9, '', 'killed by signal 9'),
    (2, 'noise\naot_report: no model X is registered\n', 'X: no model X is registered'),
    (1, 'Traceback\n  File\nTypeError: Tensors differ\nFor simplicity, JAX\n', 'X: TypeError: Tensors differ'),
    (1, 'a.b.CError: no\nnoise\n', 'a.b.CError: no'),
    (7, '', 'exit status 7')])
def test_the_reason_is_one_line(monkeypatch, status, said, part):
  monkeypatch.setattr(subprocess, 'run', lambda command, **_: subprocess.CompletedProcess(
      command, status, '', said))
  with pytest.raises(processes.FailedError, match=part) as error:
    processes.report('X', 'v3:2x2', 'auto', [])
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('status', [0, 3])
def test_a_report_is_read_whether_the_model_fits_or_not(monkeypatch, status):
  def run(command, **_):
    path = next(c for c in command if c.startswith('--json='))[len('--json='):]
    with open(path, 'w', encoding='utf-8') as f:
      f.write('{"fits": false}')
    assert '--set=REMAT=block' in command and '--topology=v3:2x2' in command
    return subprocess.CompletedProcess(command, status, '', '')
  monkeypatch.setattr(subprocess, 'run', run)
  assert processes.report('X', 'v3:2x2', 'auto', ['REMAT=block']) == {'fits': False}
