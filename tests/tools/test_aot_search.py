"""The search for the largest model that fits, with a compiler of known memory."""

import pytest

from gshard_tf.params import variants
from model_registry import smoke
from tests.tools import reports
from tools import aot_search
from tools import processes

GIB = reports.GIB


class Compiler:
  """Memory and parameters that are simple functions of the constants."""

  def __init__(self, curve=lambda x: x, fails=lambda model: False):
    self.calls, self._curve, self._fails = [], curve, fails

  def __call__(self, settings):
    model = variants.variant(smoke.Tiny, settings)
    self.calls.append(settings)
    if self._fails(model):
      raise processes.FailedError('killed by signal 9')
    size = (model.NUM_EXPERTS // 8) * model.ENCODER_LAYERS * model.HIDDEN_DIM
    return reports.report(total=int(self._curve(size) * 2**20), limit=16 * GIB, settings=settings,
                          parameters=size)


def search(compiler, ways, limit):
  said = []
  result = aot_search.largest(smoke.Tiny, 'v3:2x2', ways, compiler, limit=limit, say=said.append)
  return result, said


@pytest.fixture(autouse=True)
def _weights(monkeypatch):
  """Weights that are half of the memory per unit, as the search supposes."""
  size = lambda m: (m.NUM_EXPERTS // 8) * m.ENCODER_LAYERS * m.HIDDEN_DIM * 2**19
  monkeypatch.setattr(aot_search.scaling, 'weight_bytes', lambda model, topology: size(model))


# Tiny itself is 128 of these units: 1 of experts, 2 layers, 64 wide.
@pytest.mark.parametrize('way, constants, units', [
    ('experts', ['NUM_EXPERTS=48'], 6 * 128),
    ('layers', ['ENCODER_LAYERS=12', 'DECODER_LAYERS=12'], 12 * 64),
    ('hidden', ['HIDDEN_DIM=424'], 2 * 424)])
def test_it_finds_the_last_that_fits(way, constants, units):
  compiler = Compiler()
  result, said = search(compiler, [way], limit=860 * 2**20)
  assert result['constants'] == constants and result['parameters'] == units
  assert result['fits'] and result['headroom'] == (860 - units) * 2**20
  tried = {t['size']: t['fits'] for t in result['search'][way]}
  best = max(size for size, fits in tried.items() if fits)
  assert tried[best + 1] is False  # its neighbour was compiled too
  assert len(compiler.calls) <= 5
  assert sum('fits' in line for line in said) >= 1


@pytest.mark.parametrize('curve', [
    lambda x: x**1.5 / 10, lambda x: 400 + x / 3, lambda x: 20 * x**.5], ids=['steep', 'flat', 'bent'])
def test_it_does_not_depend_on_the_first_guess(curve):
  result, _ = search(Compiler(curve), ['hidden'], limit=900 * 2**20)
  fits = lambda width: int(curve(2 * width) * 2**20) <= 900 * 2**20
  width = 8 * next(n for n in range(2000, 0, -1) if fits(8 * n))
  assert result['constants'] == [f'HIDDEN_DIM={width}']


def test_all_ways_are_tried_and_the_most_parameters_win():
  result, _ = search(Compiler(), aot_search.WAYS, limit=860 * 2**20)
  assert set(result['search']) == set(aot_search.WAYS)
  assert result['parameters'] == 848  # 424 wide: the finest steps


def test_a_model_that_is_too_large_shrinks():
  result, said = search(Compiler(), ['hidden'], limit=100 * 2**20)
  assert result['constants'] == ['HIDDEN_DIM=48'] and result['fits']
  assert any('does not fit' in line for line in said)


def test_none_that_fits_is_said():
  result, _ = search(Compiler(), ['experts'], limit=1)
  assert not result['fits'] and result['constants'] == []


def test_what_cannot_be_compiled_here_bounds_the_search():
  result, said = search(Compiler(fails=lambda m: m.NUM_EXPERTS > 24), ['experts'], limit=860 * 2**20)
  assert result['constants'] == ['NUM_EXPERTS=24']
  assert any('cannot be compiled here: killed' in line for line in said)


def test_settings_are_constants_of_the_model():
  for way in aot_search.WAYS:
    here = aot_search.present(smoke.Tiny, way)
    model = variants.variant(smoke.Tiny, aot_search.constants(smoke.Tiny, way, here))
    same = ('NUM_EXPERTS', 'ENCODER_LAYERS', 'DECODER_LAYERS', 'HIDDEN_DIM')
    assert [getattr(model, n) for n in same] == [getattr(smoke.Tiny, n) for n in same]
