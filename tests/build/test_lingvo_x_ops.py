"""Lingvo runs here with the real op library or with its stand-in."""

import importlib.util
import pathlib
import re
import subprocess
import sys

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import lingvo_x_ops
import numpy as np
import pytest
import tensorflow as tf

OPS_FILE = pathlib.Path(lingvo_x_ops.__file__).with_name('gen_x_ops.py')
OPS_MODULE = 'lingvo.core.ops.gen_x_ops'
MISSING_LIBRARY = [str(OPS_FILE.parent)]  # a directory without x_ops.so


@pytest.fixture(name='ops', scope='module')
def _ops():
  """The stand-in, also where the real library loads."""
  spec = lingvo_x_ops._Finder.find_spec(OPS_MODULE, MISSING_LIBRARY)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _python(code):
  return subprocess.run(
      [sys.executable, '-c', code], check=True, capture_output=True, text=True
  ).stdout.split()


def _run(build, in_graph):
  """Runs `build` eagerly, or in a graph and session as the trainer does."""
  if not in_graph:
    result = build()
    return None if result is None else result.numpy()
  with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    return session.run(build())


def _passes(build, in_graph):
  try:
    _run(build, in_graph)
  except tf.errors.InvalidArgumentError:
    return False
  return True


def test_interpreter_start_does_not_import_tensorflow():
  out = _python(
      'import sys; print("lingvo_x_ops" in sys.modules, '
      '"tensorflow" in sys.modules, "lingvo" in sys.modules)')
  assert out == ['True', 'False', 'False']


def test_lingvo_imports_without_help():
  out = _python('from lingvo.core import gshard_builder as g, py_utils;'
                'print(g.UniTransformer.__name__)')
  assert out[-1] == 'UniTransformer'


def test_only_lingvos_op_module_is_answered():
  assert lingvo_x_ops._Finder.find_spec('lingvo.core.ops.other', []) is None


def test_the_real_library_is_used_where_it_loads(monkeypatch):
  monkeypatch.setattr(tf, 'load_op_library', lambda path: object())
  assert lingvo_x_ops._Finder.find_spec(OPS_MODULE, MISSING_LIBRARY) is None


def test_installing_twice_registers_one_finder():
  lingvo_x_ops.install()
  assert sys.meta_path.count(lingvo_x_ops._Finder) == 1


def test_a_missing_op_says_which_and_what_to_do(ops):
  op = ops.beam_search_step_v2  # looked up, as Lingvo does on import
  with pytest.raises(RuntimeError) as error:
    op(1, eos_id=2)
  message = str(error.value)
  assert "'beam_search_step_v2'" in message
  assert 'x_ops.so' in message  # the dynamic linker's own words
  assert 'glibc 2.38' in message
  assert '\n' not in message


def test_module_attributes_are_not_taken_for_ops(ops):
  assert not hasattr(ops, '__path__')


SHAPES = st.lists(st.integers(-1, 2), max_size=3)


@pytest.mark.parametrize('in_graph', [False, True])
@settings(max_examples=60, deadline=None)
@given(x=SHAPES, y=SHAPES)
def test_assert_shape_match(ops, in_graph, x, y):
  expected = len(x) == len(y) and all(
      a == b or -1 in (a, b) for a, b in zip(x, y))
  assert _passes(lambda: ops.assert_shape_match(x, y), in_graph) == expected


@pytest.mark.parametrize('in_graph', [False, True])
def test_assert_shape_match_of_tensors_names_both_shapes(ops, in_graph):
  def check(rows):
    x = tf.zeros([rows, 4])
    return ops.assert_shape_match(
        tf.shape(x), [tf.constant(3), -1], msg='of weights')
  assert _passes(lambda: check(3), in_graph)
  with pytest.raises(tf.errors.InvalidArgumentError) as error:
    _run(lambda: check(5), in_graph)
  data = error.value.message.partition('of weights mismatch shape: x, y =')[2]
  assert re.findall(r'-?\d+', data)[:4] == ['5', '4', '3', '-1']


@pytest.mark.parametrize('in_graph', [False, True])
@settings(max_examples=60, deadline=None)
@given(shapes=st.lists(st.lists(st.integers(0, 2), max_size=2), max_size=3))
def test_assert_same_dim0(ops, in_graph, shapes):
  expected = all(s and s[0] == shapes[0][0] for s in shapes if shapes[0])
  expected = expected and (not shapes or bool(shapes[0]))
  build = lambda: ops.assert_same_dim0([tf.zeros(s) for s in shapes])
  assert _passes(build, in_graph) == expected


def _best_step(history, tol, minimize):
  """What `BestStepOp` computes, with NumPy."""
  steps = np.array(sorted(history), np.int64)
  values = np.array([history[s] for s in steps], np.float32)
  values = values if minimize else -values
  best = None
  for i in range(len(steps)):
    if best is None or values[i] + np.float32(tol) < values[best]:
      best = i
  return [0, 0] if best is None else [steps[best], steps[-1]]


HISTORIES = st.dictionaries(
    st.integers(1, 50), st.floats(-2, 2, width=16), max_size=8)


@pytest.mark.parametrize('in_graph', [False, True])
@settings(max_examples=40, deadline=None)
@given(history=HISTORIES, tol=st.sampled_from([0.0, 0.5]),
       minimize=st.booleans())
def test_best_step_of_a_text_file(
    ops, tmp_path_factory, in_graph, history, tol, minimize):
  path = tmp_path_factory.mktemp('history') / 'dev.txt'
  path.write_text(''.join(f'{s} {v}\n' for s, v in history.items()))
  steps = _run(lambda: ops.best_step(str(path), tol, minimize), in_graph)
  assert steps.tolist() == _best_step(history, tol, minimize)


def test_best_step_of_event_files_reads_one_metric(ops, tmp_path):
  history = {1: 0.5, 2: 0.75, 3: 0.25}
  with tf.Graph().as_default():
    writer = tf.compat.v1.summary.FileWriter(str(tmp_path))
    for step, value in history.items():
      for tag, v in (('bleu', value), ('loss', -value)):
        writer.add_summary(
            tf.compat.v1.Summary(
                value=[tf.compat.v1.Summary.Value(tag=tag, simple_value=v)]),
            step)
    writer.close()
  pattern = str(tmp_path / 'events.out.tfevents*')
  steps = ops.best_step(pattern, minimize=False, metric='bleu').numpy()
  assert steps.tolist() == [2, 3]


def test_best_step_without_a_history_is_zero(ops, tmp_path):
  assert ops.best_step(str(tmp_path / 'none.txt')).numpy().tolist() == [0, 0]
