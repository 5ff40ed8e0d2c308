"""What the compiler made of a lowered model: its tensors, its collectives, and why.

The program is compiled for real. XLA hands out the module as it was before the
partitioner, all shardings completed, and as it is at the end; the rest is
reading (`hlo`, `collectives`, `dataflow`, `reshards`).
"""

import dataclasses
import glob
import os
import tempfile

import jax
import numpy as np

from gshard_tf import artifact as artifact_lib
from gshard_tf import device_mesh
from gshard_tf import quiet
from gshard_tf.runtime import collectives
from gshard_tf.runtime import dataflow
from gshard_tf.runtime import hlo
from gshard_tf.runtime import mesh as mesh_lib
from gshard_tf.runtime import program as program_lib
from gshard_tf.runtime import reshards
from gshard_tf.runtime import tiles

_BEFORE = 'spmd-partitioning'  # the pass of XLA
_XLA_TYPES = {'float32': 'f32', 'bfloat16': 'bf16', 'float16': 'f16', 'float64': 'f64'}
# Machine code of less speed, sooner; the partitioned program is the same.
_OPTIONS = {'xla_backend_optimization_level': 0, 'xla_dump_hlo_pass_re': _BEFORE,
            'xla_dump_emitter_re': 'none'}


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A weight or an annotated activation.

  Attributes:
    layer: its layer.
    name: of a weight its name in the layer, of an activation its letters.
    letters: the key in the sharding table.
    shape: the whole tensor.
    axes: mesh axes of each dimension; None where they do not follow the mesh.
    device_shape: what one device holds.
    count: how many there are of them.
  """
  layer: str
  name: str
  letters: str
  shape: hlo.Shape
  axes: tiles.Axes | None
  device_shape: hlo.Shape
  count: int = 1


@dataclasses.dataclass(frozen=True)
class Explanation:
  """What was compiled.

  Attributes:
    mesh: for which devices.
    weights: in order of their paths.
    activations: in the order of the program; those of one layer that are alike
      stand once.
    collectives: each with its cause; those nobody asked for first, then by bytes.
  """
  mesh: device_mesh.Mesh
  weights: list[Tensor]
  activations: list[Tensor]
  collectives: list[tuple[collectives.Collective, reshards.Cause]]

  def as_dict(self) -> dict:
    """Everything as what JSON has; sizes in bytes a device, shardings as table entries."""
    rows = [_collective(c, cause) for c, cause in self.collectives]
    return dict(
        mesh=dict(zip(self.mesh.axis_names, self.mesh.shape)), partitions=self.mesh.size,
        weights=[_tensor(w) for w in self.weights],
        activations=[_tensor(a) for a in self.activations],
        collectives=rows, unrequested=[row for row in rows if not row['requested']],
        kinds={kind: total._asdict() for kind, total in collectives.totals(
            c for c, _ in self.collectives).items()},
        layers=self._layers(rows))

  def _layers(self, rows):
    """Totals by layer, most bytes between devices first."""
    layers = {}
    def total(layer):
      return layers.setdefault(layer, dict(
          layer=layer, weights=0, activations=0, collectives=0, unrequested=0))
    for weight in self.weights:
      total(weight.layer)['weights'] += weight.device_shape.bytes
    for activation in self.activations:
      total(activation.layer)['activations'] += activation.device_shape.bytes * activation.count
    for row in rows:
      total(row['layer'])['collectives'] += row['bytes']
      total(row['layer'])['unrequested'] += row['bytes'] * (not row['requested'])
    return sorted(layers.values(), key=lambda l: (-l['collectives'], -l['weights'], l['layer']))


def _tensor(t):
  return dict(layer=t.layer, name=t.name, letters=t.letters, dtype=t.shape.dtype,
              shape=t.shape.dims, sharding=_entry(t.axes), device_shape=t.device_shape.dims,
              bytes=t.device_shape.bytes, whole_bytes=t.shape.bytes, count=t.count)


def _collective(c, cause):
  fix = cause.fix or reshards.Fix('')
  return dict(
      kind=c.kind, bytes=c.bytes * c.times, operand_bytes=c.operand_bytes * c.times,
      times=c.times, layer=cause.origin.layer, op=cause.origin.op,
      backward=cause.origin.backward, group_size=c.group_size, groups=len(c.groups),
      axes=cause.axes, dtype=cause.shape.dtype, shape=cause.shape.dims,
      **{'from': _entry(cause.before), 'to': _entry(cause.after)}, cause=cause.asked,
      requested=cause.fix is None, annotation=fix.text, entry=fix.letters, mapping=fix.mapping,
      instruction=c.name)


def _entry(axes):
  return None if axes is None else reshards.table_entry(axes)


def explain(artifact: artifact_lib.Artifact, mesh: jax.sharding.Mesh,
            function: str) -> Explanation:
  """Compiles a function of a lowered model and reads what came out.

  Args:
    artifact: lowered for a mesh of the same shape, `function` with it.
    mesh: the devices.
    function: one of the artifact's.

  Returns:
    The explanation.
  """
  lowered = _lower(program_lib.Program(artifact, mesh), function)
  before, after, messages = compiled(lowered)
  layers = layer_names(artifact)
  logical = device_mesh.Mesh(artifact.mesh_shape, artifact.mesh_axes)
  graph = dataflow.Graph(before, logical, layers)
  whole = reshards.rematerialized(messages)
  found = [(c, reshards.explain(c, graph, whole)) for c in collectives.read(after)]
  found.sort(key=lambda pair: (pair[1].fix is None, -pair[0].bytes * pair[0].times))
  return Explanation(logical, _weights(artifact, graph), _activations(graph), found)


def _lower(program, function):
  """The function, traced for the mesh."""
  artifact, int32 = program.artifact, jax.ShapeDtypeStruct((), np.int32)
  if function == 'init':
    return program.init.lower(int32)
  if function == 'train':  # with the optimiser
    batch = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, np.int32), artifact.batch,
                         is_leaf=lambda s: isinstance(s, (list, tuple)))
    return program.train.lower(program.state_shapes, batch, int32)
  exported = program.function(function)
  theta, *inputs = jax.tree.unflatten(exported.in_tree, exported.in_avals)[0]
  place = lambda x: mesh_lib.sharding(program.mesh, (artifact.batch_axes,) if x.ndim else ())
  shardings = (program.state_shardings['theta'], *jax.tree.map(place, inputs))
  call = lambda theta, *inputs: exported.call(theta, *inputs)  # whose arguments have names
  return jax.jit(call, in_shardings=shardings).lower(theta, *inputs)


def compiled(lowered: jax.stages.Lowered) -> tuple[hlo.Module, hlo.Module, str]:
  """Compiles a program.

  Args:
    lowered: the program.

  Returns:
    The module before the partitioner, the compiled one, and what XLA said.
  """
  with tempfile.TemporaryDirectory() as folder:
    with quiet.libraries() as said:
      text = lowered.compile(_OPTIONS | {'xla_dump_to': folder}).as_text()
      messages = said()
    dumps = glob.glob(os.path.join(glob.escape(folder), f'*.before_{_BEFORE}.txt'))
    # XLA compiles small helpers beside the program.
    with open(max(dumps, key=os.path.getsize), encoding='utf-8') as f:
      before = hlo.parse(f.read())
  return before, hlo.parse(text), messages


def layer_names(artifact: artifact_lib.Artifact) -> dict[str, str]:
  """What to call the layers that hold weights, and those around them, by path.

  A layer of a loop goes by the path of its stacked weights.
  """
  names = {}
  for w in artifact.weights:
    for path in w.layers or (w.path,):
      parts = list(zip(path.split('.'), w.path.split('.')))[:-1]
      for i in range(1, len(parts) + 1):
        own, told = zip(*parts[:i])
        names['.'.join(own)] = '.'.join(told)
  return names


def _weights(artifact, graph):
  letters = {}
  for annotation in graph.annotations():
    if weight := graph.weight(annotation):
      letters.setdefault(weight[0], graph.origin(annotation).letters)
  found = []
  for w in artifact.weights:
    layer, _, name = w.path.rpartition('.')
    dtype = _XLA_TYPES.get(w.dtype, w.dtype)
    found.append(Tensor(
        layer, name, letters.get(w.path, ''), hlo.Shape(dtype, w.shape), w.axes,
        hlo.Shape(dtype, tiles.shard(graph.mesh, w.shape, w.axes))))
  return found


def _activations(graph):
  """Annotated tensors of the forward pass."""
  counts = {}
  for annotation in graph.annotations():
    origin, axes = graph.origin(annotation), graph.axes(annotation)
    if origin.backward or graph.weight(annotation):
      continue
    shape = annotation.shape
    whole = ((),) * len(shape.dims)
    device = hlo.Shape(shape.dtype, tiles.shard(graph.mesh, shape.dims, axes or whole))
    tensor = Tensor(origin.layer, origin.letters, origin.letters, shape, axes, device)
    counts[tensor] = counts.get(tensor, 0) + 1
  return [dataclasses.replace(tensor, count=n) for tensor, n in counts.items()]
