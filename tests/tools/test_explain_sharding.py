"""The command that explains a sharding, run for real."""

import json
import pathlib
import subprocess
import sys

import pytest

from tools import explain_sharding

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
TINY = 'model_registry.smoke.Tiny'


def run(*arguments):
  return subprocess.run([sys.executable, '-m', 'tools.explain_sharding', *arguments], cwd=ROOT,
                        capture_output=True, text=True, timeout=600, check=False)


def test_two_meshes_beside_each_other(tmp_path):
  page, data = tmp_path / 'tiny.html', tmp_path / 'tiny.json'
  page.write_text('x' * 10**6)  # a longer one that was there
  result = run(f'--model={TINY}', '--mesh=8', '--mesh=4x2', '--function=evaluate',
               f'--html={page}', f'--json={data}')
  assert result.returncode == 0 and not result.stderr, result.stderr
  assert 'Meshes beside each other' in result.stdout
  report = json.loads(data.read_text())
  assert [len(report[key]) > 0 for key in (
      'weights', 'activations', 'collectives', 'unrequested')] == [True, True, True, False]
  for row in report['collectives']:
    assert {'kind', 'bytes', 'op', 'layer'} <= row.keys()
  line, plane = report['meshes']
  assert (line['mesh'], plane['mesh']) == ({'expert': 8, 'model': 1}, {'expert': 4, 'model': 2})
  assert line['weights'] == report['weights'] and not plane['unrequested']
  wi = [next(w for w in r['weights'] if w['layer'] == 'encoder.blocks_1.feed_forward.experts'
             and w['name'] == 'wi') for r in (line, plane)]
  assert [w['device_shape'] for w in wi] == [[1, 32, 64], [2, 32, 32]]
  text = page.read_text()
  assert text.startswith('<!doctype html>') and text.rstrip().endswith('</html>')
  assert 'encoder.blocks_1.feed_forward' in text and 'Mesh 4x2' in text


def test_a_fault_is_one_line():
  result = run(f'--model={TINY}', '--mesh=3')
  assert result.returncode == 2
  line, = result.stderr.splitlines()
  assert line.startswith('explain_sharding: 8 experts of') and 'do not split over 3' in line


@pytest.mark.parametrize('arguments, part', [
    ([f'--model={TINY}x', '--mesh=8'], 'did you mean model_registry.smoke.Tiny'),
    ([f'--model={TINY}', '--mesh=eight'], 'give auto, or 1 to 2 sizes'),
    ([f'--model={TINY}', '--mesh=auto'], 'give sizes such as 8 or 4x2'),
    ([f'--model={TINY}', '--mesh=8', '--html=/proc/page.html'], '/proc/page.html'),
    ([f'--model={TINY}', '--mesh=8', '--json=/proc/page.json'], '/proc/page.json'),
])
def test_faults(arguments, part, monkeypatch, capfd):
  monkeypatch.setattr(sys, 'argv', ['explain_sharding', *arguments])
  assert explain_sharding.main() == 2
  assert part in capfd.readouterr().err.splitlines()[-1]
