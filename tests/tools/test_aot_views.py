"""The report as a page and as tables."""

import html.parser
import re

import pytest

from tests.tools import reports
from tools import aot_views

GIB = reports.GIB
COMPARED = reports.report(variants=[
    reports.report(total=5 * GIB, settings=['REMAT=block'], estimated_step_seconds=1.)])
SEARCHED = reports.report(constants=['NUM_EXPERTS=4096'], search=dict(experts=[
    dict(size=1, settings=[], fits=True, parameters=1e9, memory=dict(total=GIB)),
    dict(size=2, settings=['NUM_EXPERTS=4096'], fits=False, parameters=None, memory=None)]))


class Tags(html.parser.HTMLParser):
  """Checks that tags close in order, and keeps attributes."""

  def __init__(self):
    super().__init__()
    self.open, self.attributes = [], []

  def handle_starttag(self, tag, attrs):
    self.attributes += attrs
    if tag not in ('meta', 'br'):
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.attributes += attrs

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


@pytest.mark.parametrize('report', [
    reports.report(), reports.report(total=20 * GIB), reports.report(paper=None), COMPARED, SEARCHED])
def test_a_page_is_well_formed_and_needs_nothing_else(report):
  page = aot_views.page(report)
  tags = Tags()
  tags.feed(page)
  assert not tags.open
  assert not [a for a in tags.attributes if a[0] in ('src', 'href')]
  assert 'url(' not in page and '@import' not in page and '<script' not in page
  assert 'prefers-color-scheme: dark' in page and 'width=device-width' in page
  assert '&lt;Einsum&gt;' in page and '<Einsum>' not in page


def test_a_page_says_whether_it_fits_and_what_to_change():
  fits, other = (aot_views.page(reports.report(total=n * GIB)) for n in (10, 20))
  assert '5.00 GiB to spare' in fits and 'To change' not in fits
  assert '5.00 GiB too much' in other and 'To change: REMAT=block' in other
  assert '1.39 s' in fits and 'measured by the paper' in fits
  assert 'measured' not in aot_views.page(reports.report(paper=None))


@pytest.mark.parametrize('total', [3, 15, 30])
def test_the_bar_of_memory_ends_where_the_memory_does(total):
  page = aot_views.page(reports.report(total=total * GIB))
  bar = page[page.index('aria-label="memory"'):page.index('limit 15.00 GiB')]
  rects = [tuple(map(float, m)) for m in re.findall(r'<rect x="([\d.]+)" y="0" width="([\d.]+)"', bar)]
  (first, length), (second, more), (limit, _) = rects
  assert first == 0 and second == pytest.approx(length)
  scale = 100 / max(total, 15)
  assert second + more == pytest.approx(total * scale)
  assert limit == pytest.approx(15 * scale - .4)


def test_tables_say_the_same(capsys):
  aot_views.show(reports.report(total=20 * GIB))
  said = capsys.readouterr().out
  for part in ('v3:32x32', '20.00 GiB', '640,000,000,000', 'encoder.blocks_1.feed_forward',
               'REMAT=block', 'does not fit', 'measured by the paper'):
    assert part in said
  aot_views.show(COMPARED)
  said = capsys.readouterr().out
  assert '5.00 GiB (-50%)' in said and '1 s (+25%)' in said and 'does not fit' not in said
  aot_views.show(SEARCHED)
  assert 'NUM_EXPERTS=4096' in capsys.readouterr().out


def test_the_parts_are_all_named_and_sorted():
  found = aot_views.parts(reports.report())
  assert len(found) == len(reports.report()['roofline']) - 1  # but for the total
  assert [s for _, s in found] == sorted((s for _, s in found), reverse=True)


@pytest.mark.parametrize('seconds, text', [
    (1.389, '1.39 s'), (.9, '0.9 s'), (.0123, '12.3 ms'), (2e-6, '2 µs'), (None, '-'), (1234., '1,234 s')])
def test_seconds(seconds, text):
  assert aot_views.seconds(seconds) == text


@pytest.mark.parametrize('n, text', [
    (6.3e11, '630 G'), (2.04e12, '2.04 T'), (4.2e6, '4.2 M'), (21.46, '21'), (1.46, '1.46'), (None, '-')])
def test_numbers(n, text):
  assert aot_views.number(n) == text
