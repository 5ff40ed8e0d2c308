"""The tables and the page, of results made up."""

import html.parser

import pytest

from tools import explanation_views as views


def row(**changes):
  return dict(
      kind='all-gather', bytes=2048, operand_bytes=256, times=1, layer='encoder.blocks_0', op='add/Sum',
      backward=False, group_size=8, groups=1, axes=('d',), dtype='f32', shape=(8, 64),
      **{'from': ('d', None), 'to': (None, None)}, cause='ab -> cd', requested=True,
      annotation='', entry='', mapping=(), instruction='all-gather.1') | changes


RED = dict(requested=False, cause='', entry='ab', mapping=('d', None),
           annotation="weight <script>alert(1)</script>: make 'ab' (d, None)")


def result(rows, mesh_text='8'):
  tensor = dict(layer='encoder.blocks_0', name='w', letters='ab', dtype='f32', shape=(8, 64),
                sharding=('d', ('x', 'y')), device_shape=(1, 64), bytes=256, whole_bytes=2048, count=1)
  return dict(
      model='some.Model', function='train', mesh_text=mesh_text, mesh={'d': 8}, partitions=8,
      lower_seconds=1., compile_seconds=2., weights=[tensor], activations=[tensor | {'count': 3}],
      collectives=rows, unrequested=[r for r in rows if not r['requested']],
      kinds={'all-gather': dict(count=len(rows), bytes=2048 * len(rows))},
      layers=[dict(layer='encoder.blocks_0', weights=256, activations=768,
                   collectives=2048 * len(rows),
                   unrequested=sum(r['bytes'] for r in rows if not r['requested']))])


@pytest.mark.parametrize('n, text', [
    (0, '0 B'), (1023, '1,023 B'), (1024, '1.0 KiB'), (100 * 1024, '100 KiB'),
    (3 * 2**20, '3.0 MiB'), (5000 * 2**30, '5,000 GiB')])
def test_sizes(n, text):
  assert views.size(n) == text


@pytest.mark.parametrize('entry, text', [
    ((), '()'), (('d', None), '(d, None)'), ((('x', 'y'), None), '((x, y), None)'),
    (None, 'not along the mesh')])
def test_layouts(entry, text):
  assert views.layout(entry) == text


def test_rows_of_one_cause_are_merged():
  rows = [row(op='einsum/Einsum'), row(op='einsum_2/Einsum_1', times=3, bytes=10), row(layer='other')]
  first, second = views.merged(rows)
  assert (first['op'], first['count'], first['bytes']) == ('einsum/Einsum', 4, 2058)
  assert (second['layer'], second['count']) == ('other', 1)


def test_remedies_are_ordered_by_what_they_save():
  rows = [row(**RED), row(**RED | dict(entry='cd', bytes=5000)), row(**RED, layer='other')]
  first, second = views.remedies(rows)
  assert (first['bytes'], len(first['rows'])) == (5000, 1)
  assert (second['bytes'], [r['layer'] for r in second['rows']]) == (
      4096, ['encoder.blocks_0', 'other'])


class _Page(html.parser.HTMLParser):
  """What a page holds: tags with attributes, open tags, and its text."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.open, self.text, self.tables = [], [], '', []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag == 'table':
      self.tables.append([attributes for _, attributes in self.open])
    if tag not in ('meta', 'br'):
      self.open.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open.pop()[0] == tag

  def handle_data(self, data):
    self.text += data


def test_the_page_stands_alone_and_fits_a_phone():
  page = _Page(views.page([result([row(**RED), row()]), result([row()], '4x2')]))
  assert not page.open  # every tag is closed
  names = [tag for tag, _ in page.tags]
  assert not {'script', 'link', 'img', 'iframe'} & set(names)
  assert not [a for _, attributes in page.tags for a in attributes if a in ('src', 'href')]
  assert any(a.get('name') == 'viewport' and 'device-width' in a['content']
             for tag, a in page.tags if tag == 'meta')
  assert page.tables and all(
      {'class': 'scroll'} in around for around in page.tables)  # each scrolls inside itself


def test_what_nobody_asked_for_comes_first_on_the_page():
  text = views.page([result([row(**RED), row()])])
  page = _Page(text)
  assert '&lt;script&gt;' in text
  red = [attributes for _, attributes in page.tags if attributes.get('class') == 'red']
  assert len(red) == 1
  assert page.text.index("make 'ab' (d, None)") < page.text.index('Bytes between devices')
  assert 'None.' in _Page(views.page([result([row()])])).text


def test_the_bars_are_in_proportion():
  page = _Page(views.page([result([row(**RED), row()])]))
  assert [a['style'] for tag, a in page.tags if tag == 'i'] == ['width:50.00%', 'width:50.00%']


def test_a_model_without_collectives():
  nothing = result([]) | {'kinds': {}}
  assert _Page(views.page([nothing])).text
  views.show([nothing])


def test_the_terminal_shows_red_first(capsys):
  views.show([result([row(**RED), row()]), result([row()], '4x2')])
  out = capsys.readouterr().out
  assert out.index('Reshards that nobody asked for') < out.index('Layers')
  assert "make 'ab' (d, None)" in ' '.join(out.split())
  assert 'No reshard that nobody asked for' in out  # on the second mesh
  assert out.rstrip().splitlines()[-1].split()[-3:] == ['of', '0', 'B']
