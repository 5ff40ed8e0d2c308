"""The layers of the project: a file imports only from floors below its own."""

import ast
import fnmatch
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
TREES = ('gshard_tf', 'model_registry', 'tools')

# Pattern of files: floor. The first pattern that fits counts. Files of one
# pattern may import each other; otherwise only lower floors.
FLOORS = {
    '*/__init__.py': -1,
    'gshard_tf/device_mesh.py': -0.5,
    'gshard_tf/device_order.py': -0.4,
    'gshard_tf/op_sharding.py': -0.4,
    'gshard_tf/manual_region.py': -0.3,
    'gshard_tf/xla_sharding.py': 0,
    'gshard_tf/artifact.py': 0,
    'gshard_tf/quiet.py': 0,
    'gshard_tf/output_files.py': 0,
    'gshard_tf/corpus/*': 0,
    'gshard_tf/input/corpus.py': 0,
    'gshard_tf/input/mixing.py': 0,
    'gshard_tf/input/packing.py': 0,
    'gshard_tf/input/tokenizer.py': 0,
    'gshard_tf/input/pipeline.py': 1,
    'gshard_tf/input/generator.py': 2,
    'gshard_tf/layers/gating.py': 0,
    'gshard_tf/layers/dispatch.py': 1,
    'gshard_tf/layers/expert_choice.py': 1,
    'gshard_tf/layers/expert_metrics.py': 1,
    'gshard_tf/layers/randomness.py': 0.5,
    'gshard_tf/layers/token_choice.py': 1,
    'gshard_tf/layers/weights.py': 1,
    'gshard_tf/layers/router.py': 1.5,
    'gshard_tf/layers/activations.py': 0,
    'gshard_tf/layers/repeat.py': 0,
    'gshard_tf/layers/dropless.py': 1,
    'gshard_tf/layers/experts.py': 2,
    'gshard_tf/layers/moe.py': 2.5,
    'gshard_tf/layers/feed_forward.py': 2,
    'gshard_tf/layers/attention.py': 2,
    'gshard_tf/layers/embedding.py': 2,
    'gshard_tf/layers/transformer.py': 3,
    'gshard_tf/models/translation.py': 4,
    'gshard_tf/train_step.py': 5,
    'gshard_tf/params/*': 5.5,
    'gshard_tf/lowering.py': 6,
    'gshard_tf/spmd.py': 7.5,
    'model_registry/*': 7,
    'gshard_tf/runtime/hlo.py': 0,
    'gshard_tf/runtime/tiles.py': 1,
    'gshard_tf/runtime/dataflow.py': 2,
    'gshard_tf/runtime/collectives.py': 2,
    'gshard_tf/runtime/reshards.py': 3,
    'gshard_tf/runtime/mesh.py': 7,
    'gshard_tf/runtime/optimizer.py': 7,
    'gshard_tf/runtime/hlo_sharding.py': 6.7,
    'gshard_tf/runtime/xla_faults.py': 6.8,
    'gshard_tf/runtime/manual_ops.py': 6.9,
    'gshard_tf/runtime/partitioner.py': 7,
    'gshard_tf/runtime/stacking.py': 6.9,
    'gshard_tf/runtime/checkpoint.py': 7,
    'gshard_tf/runtime/topologies.py': 7,
    'gshard_tf/runtime/*': 8,
    'gshard_tf/scaling.py': 9,
    'gshard_tf/decode/beam_search.py': 0,
    'gshard_tf/decode/bleu.py': 0,
    'gshard_tf/decode/report.py': 1,
    'gshard_tf/decode/translate.py': 8.5,
    'gshard_tf/decode/*': 9,
    'gshard_tf/runners.py': 9,
    'gshard_tf/trainer.py': 10,
    'tools/explanation_views.py': 0,
    'tools/*': 11,
}

# An artifact runs where only JAX is installed: what these files import, and
# what that imports, leaves TensorFlow out.
JAX_ONLY = ('gshard_tf/runtime/*', 'gshard_tf/decode/*')
TENSORFLOW = (
    'tensorflow', 'tensorflow_text', 'tensorflow_datasets', 'keras',
    'tf_keras', 'lingvo', 'jax.experimental.jax2tf')


def _imported_names(path, root):
  """Yields each dotted name a file imports, wherever in the file it does."""
  package = path.relative_to(root).parent.parts
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield alias.name
    elif isinstance(node, ast.ImportFrom):
      base = package[:len(package) - node.level + 1] if node.level else ()
      base += (node.module,) if node.module else ()
      for alias in node.names:
        yield '.'.join(base + (alias.name,))


def _project_files(name, root):
  """Returns the files of the project that importing a dotted name runs."""
  files = []
  parts = name.split('.')
  for length in range(1, len(parts) + 1):
    module = root.joinpath(*parts[:length])
    files += [f for f in (module / '__init__.py', module.with_suffix('.py'))
              if f.exists()]
  return {str(f.relative_to(root)) for f in files}


def import_graph(root):
  """Returns {file: (files it imports, other dotted names it imports)}."""
  graph = {}
  for path in (p for tree in TREES for p in (root / tree).rglob('*.py')):
    files, others = set(), set()
    for name in _imported_names(path, root):
      found = _project_files(name, root)
      files |= found
      if not found:
        others.add(name)
    file = str(path.relative_to(root))
    graph[file] = (files - {file}, others)
  return graph


def _pattern(file, patterns):
  return next((p for p in patterns if fnmatch.fnmatchcase(file, p)), None)


def floor_violations(graph, floors):
  """Returns one line for each file without a floor and each import upwards."""
  lines = []
  for file, (imported_files, _) in sorted(graph.items()):
    pattern = _pattern(file, floors)
    if pattern is None:
      lines.append(f'{file} has no floor; place it in FLOORS of tests/build/test_floors.py')
      continue
    for imported in sorted(imported_files):
      other = _pattern(imported, floors)
      if other not in (None, pattern) and floors[other] >= floors[pattern]:
        lines.append(
            f'{file} (floor {floors[pattern]}) imports {imported} (floor '
            f'{floors[other]}); a file imports only lower floors')
  return lines


def tensorflow_violations(graph, patterns):
  """Returns one line for each way from a file of the patterns to TensorFlow."""
  lines = []
  for start in sorted(f for f in graph if _pattern(f, patterns)):
    seen, frontier = set(), [start]
    while frontier:
      file = frontier.pop()
      if file in seen:
        continue
      seen.add(file)
      imported_files, others = graph[file]
      frontier += imported_files
      lines += [
          f'{start} must run with JAX alone, but {file} imports {name}'
          for name in sorted(others)
          if any(f'{name}.'.startswith(f'{t}.') for t in TENSORFLOW)]
  return lines


def test_every_file_imports_only_lower_floors():
  lines = floor_violations(import_graph(ROOT), FLOORS)
  assert not lines, '\n'.join(lines)


def test_runtime_and_decode_need_no_tensorflow():
  lines = tensorflow_violations(import_graph(ROOT), JAX_ONLY)
  assert not lines, '\n'.join(lines)


def test_the_package_itself_imports_nothing():
  assert not list(_imported_names(ROOT / 'gshard_tf/__init__.py', ROOT))


@pytest.fixture(name='graph_of')
def _graph_of(tmp_path):
  """Returns a function that writes {file: source} and reads its graph."""
  def write(sources):
    for file, source in sources.items():
      path = tmp_path / file
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(source)
    return import_graph(tmp_path)
  return write


@pytest.mark.parametrize('source', [
    'import gshard_tf.high',
    'from gshard_tf import high',
    'from gshard_tf.high import name',
    'from . import high',
    'from .high import name',
    'def f():\n  from gshard_tf import high',
])
def test_finds_an_import_upwards(graph_of, source):
  graph = graph_of({'gshard_tf/high.py': '', 'gshard_tf/low.py': source})
  floors = {'gshard_tf/low.py': 0, 'gshard_tf/high.py': 1}
  (line,) = floor_violations(graph, floors)
  assert line.startswith(
      'gshard_tf/low.py (floor 0) imports gshard_tf/high.py (floor 1)')
  assert not floor_violations(graph, {**floors, 'gshard_tf/high.py': -1})


def test_one_floor_is_shared_only_within_a_pattern(graph_of):
  graph = graph_of({'tools/a.py': 'import tools.b', 'tools/b.py': ''})
  assert not floor_violations(graph, {'tools/*': 0})
  assert len(floor_violations(graph, {'tools/a.py': 0, 'tools/*': 0})) == 1


def test_a_file_without_a_floor_is_named(graph_of):
  (line,) = floor_violations(graph_of({'tools/new.py': ''}), {})
  assert line.startswith('tools/new.py has no floor; place it')


@pytest.mark.parametrize('source', [
    'import tensorflow as tf',
    'from lingvo.core import py_utils',
    'from jax.experimental import jax2tf',
])
def test_finds_tensorflow_behind_an_import(graph_of, source):
  sources = {
      'gshard_tf/runtime/loop.py': 'from gshard_tf.runtime import mesh',
      'gshard_tf/runtime/__init__.py': '',
      'gshard_tf/runtime/mesh.py': 'import jax\nimport gshard_tf.names',
      'gshard_tf/names.py': source}
  lines = tensorflow_violations(graph_of(sources), ['gshard_tf/runtime/loop.py'])
  assert len(lines) == 1 and 'gshard_tf/names.py imports' in lines[0]
  sources['gshard_tf/names.py'] = 'import jax.experimental.pallas'
  assert not tensorflow_violations(graph_of(sources), JAX_ONLY)
