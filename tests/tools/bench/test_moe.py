"""The benchmark of MoE layers at a tiny size: its results' form, and the work it counts."""

import argparse
import json
import sys

import pytest

from tools.bench import __main__ as bench
from tools.bench import moe
from tools.bench import timing

pytestmark = pytest.mark.slow

SMALL = ['--tokens=64', '--model_dim=8', '--hidden_dim=16', '--rounds=2']


def run(monkeypatch, *flags):
  monkeypatch.setattr(sys, 'argv', ['bench', *flags])
  return bench.main()


def parse(*flags):
  parser = argparse.ArgumentParser()
  moe.add_arguments(parser)
  return parser.parse_args(flags)


def test_prints_tables_and_json_on_the_last_line(monkeypatch, capsys):
  assert run(monkeypatch, 'moe', '--experts=4', *SMALL, '--json') == 0
  lines = capsys.readouterr().out.splitlines()
  result = json.loads(lines[-1])
  assert 'temporaries of dispatch and combine' in ' '.join(lines)
  found = result['experts']['4']
  assert result['ratios'] == {'moe_e4_over_dense': found['over_dense'],
                              'e4_over_roofline': found['over_roofline']}
  assert min(result['ratios'].values()) > 0
  # The paper's masks have a number for each pair of token and slot, the indices none.
  assert found['temporary_bytes']['masks'] >= 4 * 64 * (2 * 64) > found['temporary_bytes']['gather']


def test_writes_json_to_a_file_and_takes_every_dispatch(monkeypatch, tmp_path):
  file = tmp_path / 'moe.json'
  assert run(monkeypatch, 'moe', '--experts=2', *SMALL, '--dispatch=dropless', f'--json={file}') == 0
  assert json.loads(file.read_text())['sizes']['dispatch'] == 'dropless'


@pytest.mark.parametrize('flag, message', [
    ('--experts=1', 'k is 2, but there are 1 experts'),
    ('--experts=0', 'must be 1 at least'),
    ('--rounds=0', 'must be 1 at least'),
    ('--dispatch=sort', "dispatch is 'sort'; choose one of einsum, gather, dropless"),
])
def test_faults_are_one_line(monkeypatch, capsys, flag, message):
  assert run(monkeypatch, 'moe', '--experts=2', *SMALL, flag) == 2
  error = capsys.readouterr().err
  assert error.startswith('bench moe: ') and message in error and error.count('\n') == 1


def test_counts_the_work_of_a_step():
  flops, moved = moe._work(parse('--tokens=4096'), 8)  # pylint: disable=protected-access
  # 8192 choices times two products of 512 x 2048, two operations each, forward and
  # twice backward; and the router's.
  assert flops == 6 * 8192 * 2 * 512 * 2048 + 6 * 4096 * 512 * 8
  more = moe._work(parse('--tokens=4096'), 9)[1]  # pylint: disable=protected-access
  # Another expert: its weights read twice, its gradient written once, in 4 bytes.
  assert more - moved == 3 * 4 * 2 * 512 * 2048


def test_interleaved_runs_in_turn_after_once_unmeasured():
  order, rounds = [], []
  programs = {name: lambda name=name: order.append(name) or len(order) for name in 'ab'}
  seconds = timing.interleaved(programs, 2, lambda: rounds.append(len(order)))
  assert ''.join(order) == 'ababab' and rounds == [4, 6]
  assert {name: list(s) for name, s in seconds.items()} == {'a': [3, 5], 'b': [4, 6]}
