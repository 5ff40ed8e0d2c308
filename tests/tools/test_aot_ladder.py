"""The paper's models beside the paper."""

import json

import pytest

from model_registry import m4
from tests.tools import reports
from tools import aot_ladder
from tools import processes

NAMES = {'model_registry.m4.MoE128E12L': 'v3:8x8', 'model_registry.m4.T96L': 'v3:32x32'}


def made(name, topology, mesh, settings):
  del mesh, settings
  return reports.report(model=name, topology=topology, paper=None if 'T96L' in name else
                        reports.report()['paper'])


def test_the_ladder_is_the_papers_seven():
  found = aot_ladder.ladder()
  cores = {'v3:8x8': 128, 'v3:16x16': 512, 'v3:32x32': 2048}
  for name, topology in found.items():
    model = getattr(m4, name.rpartition('.')[2])
    assert (model.NUM_EXPERTS or 2048) == cores[topology]
  paper = {n for n in found if getattr(m4, n.rpartition('.')[2]).PAPER_STEPS_PER_SECOND}
  assert len(paper) == 6 and 'model_registry.m4.T96L' in found


def test_reports_are_written_and_one_that_fails_stops_nothing(tmp_path, monkeypatch, capsys):
  def report(name, *rest):
    if 'T96L' in name:
      raise processes.FailedError('T96L: killed by signal 9')
    return made(name, *rest)
  monkeypatch.setattr(processes, 'report', report)
  found = aot_ladder.compile_all(dict(reversed(NAMES.items())), str(tmp_path), keep=False)
  assert [r['model'] for r in found] == ['model_registry.m4.MoE128E12L']
  said = capsys.readouterr()
  assert 'T96L: killed' in said.err and 'MoE128E12L on v3:8x8: fits' in said.out
  assert json.loads((tmp_path / 'MoE128E12L.json').read_text()) == found[0]


def test_kept_reports_are_not_made_again(tmp_path, monkeypatch):
  monkeypatch.setattr(processes, 'report', made)
  first = aot_ladder.compile_all(NAMES, str(tmp_path), keep=False)
  monkeypatch.setattr(processes, 'report', None)
  assert aot_ladder.compile_all(NAMES, str(tmp_path), keep=True) == first


def test_the_table_is_markdown_with_the_paper_beside():
  text = aot_ladder.table([made(*item, 'auto', []) for item in NAMES.items()] +
                          [reports.report(total=20 * reports.GIB)])
  rows = [line.strip('|').split('|') for line in text.splitlines()]
  assert len(rows) == 5 and len({len(r) for r in rows}) == 1
  cell = lambda row, name: rows[row][aot_ladder._COLUMNS.index(name)].strip()  # pylint: disable=protected-access
  assert cell(2, 'model') == 'MoE128E12L' and cell(2, 'paper, measured') == '1.39 s'
  assert cell(3, 'model') == 'T96L' and cell(3, 'paper, measured') == '-'
  assert cell(4, "step: XLA's estimate") == '-' and cell(4, 'headroom') == '-5.00 GiB'


@pytest.mark.parametrize('last', [[], [reports.report(total=20 * reports.GIB)]])
def test_the_plot_is_an_image(tmp_path, last):
  path = tmp_path / 'ladder.png'
  aot_ladder.draw([made(*item, 'auto', []) for item in NAMES.items()] + last, str(path))
  assert path.read_bytes().startswith(b'\x89PNG')
