"""What a registered model takes on a slice of TPUs: lowered, compiled, and put in figures."""

import math
import re
import resource
import time

import numpy as np

from gshard_tf import artifact as artifact_lib
from gshard_tf import lowering
from gshard_tf import quiet
from gshard_tf import train_step
from gshard_tf import xla_sharding
from gshard_tf.input import generator
from gshard_tf.layers import gating
from gshard_tf.runtime import aot
from gshard_tf.runtime import buffers
from gshard_tf.runtime import dataflow
from gshard_tf.runtime import explanation
from gshard_tf.runtime import mesh as mesh_lib
from gshard_tf.runtime import roofline
from gshard_tf.runtime import topologies

_MAXRSS_UNIT = 1024  # bytes, on Linux
_LARGEST = 10  # buffers to name
_YEAR = 365.25 * 86400  # seconds
_TRILLION = 1e12  # tokens, of the paper's comparison in core-years
_STATE = re.compile(r"state\['(\w+)'\].*\['([\w.:]+)'\]")


def figures(model: type, name: str, topology_name: str, mesh_text: str = 'auto') -> dict:
  """Lowers and compiles a model's train step for a slice.

  Args:
    model: its class of constants.
    name: what to call it.
    topology_name: see `topologies.find`.
    mesh_text: sizes of the mesh axes, or auto.

  Returns:
    What `tools.aot_report` writes as JSON, in bytes and seconds; docs/scaling.md
    explains the figures. What only a program that fits has is None otherwise.

  Raises:
    aot.TopologyError: libtpu does not know the topology.
    topologies.UnknownTopologyError: it is none.
    mesh_lib.MeshError, lowering.LoweringError: the mesh and the model disagree.
  """
  topology = topologies.find(topology_name)
  task, data = model().Task(), model().Train()
  sizes = mesh_lib.parse(mesh_text, len(task.mesh_axes))
  mesh = aot.topology_mesh(topology.name, sizes, task.mesh_axes, task.model_partitions)
  start = time.monotonic()
  with quiet.libraries():
    artifact = train_artifact(name, task, data, mesh)
    lowered = aot.lower_train_step(artifact, mesh)
    lower_seconds = time.monotonic() - start
    found = aot.compile_program(lowered, topology)
  parts = roofline.roofline(artifact, topology, _settings(task, artifact))
  tokens = artifact.batch['tgt']['ids'][0] * artifact.batch['tgt']['ids'][1]
  return dict(
      model=name, topology=topology.name, mesh=dict(zip(artifact.mesh_axes, artifact.mesh_shape)),
      parameters=artifact.num_parameters, tokens_per_step=tokens, lower_seconds=lower_seconds,
      host_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT,
      **found._asdict() | dict(
          buffers=[_buffer(b, task, explanation.layer_names(artifact))
                   for b in found.buffers[:_LARGEST]],
          collectives={kind: c._asdict() for kind, c in found.collectives.items()}),
      headroom=found.hbm_limit - found.memory['total'],
      flops_per_token=found.flops_per_core and found.flops_per_core * found.partitions / tokens,
      **_speed(found.estimated_step_seconds, tokens, topology.cores),
      roofline={n: p.seconds for n, p in parts.items()} | dict(
          total=sum(p.seconds for p in parts.values())),
      roofline_work={n: p._asdict() for n, p in parts.items()},
      paper=_paper(model, topology, tokens))


def weight_bytes(model: type, topology_name: str) -> int:
  """Bytes of weights on one core, without lowering anything.

  Args:
    model: a class of constants.
    topology_name: see `topologies.find`; the mesh is the one of --mesh=auto.

  Returns:
    Bytes, padding not included.
  """
  task, cores = model().Task(), topologies.find(topology_name).cores
  mesh = xla_sharding.Mesh(
      mesh_lib.automatic(cores, len(task.mesh_axes), task.model_partitions), task.mesh_axes)
  with quiet.libraries():
    weights = lowering.weight_records(train_step.Steps(task, mesh))
  return sum(math.prod(w.shape) * np.dtype(w.dtype).itemsize //
             math.prod(mesh.partitions(axes) for axes in w.axes) for w in weights)


def train_artifact(name: str, task, data, mesh) -> artifact_lib.Artifact:
  """The train step of a task, lowered as the trainer lowers it.

  Args:
    name: what to call the model.
    task: the task's Params.
    data: Params of the training input.
    mesh: of devices, or of as many that are not there.

  Returns:
    An artifact of that one function.
  """
  return lowering.lower_task(
      name, task, xla_sharding.Mesh(mesh.devices.shape, mesh.axis_names),
      generator.batch_shapes(data), {}, {}, functions=('train',))


def _speed(step_seconds, tokens, cores):
  """What follows from the time of a step."""
  if step_seconds is None:
    return dict(tokens_per_second=None, core_years_per_trillion_tokens=None)
  return dict(tokens_per_second=tokens / step_seconds, core_years_per_trillion_tokens=(
      _TRILLION / tokens * step_seconds * cores / _YEAR))


def _paper(model, topology, tokens):
  """What the paper measured, if it was on such a slice; None otherwise."""
  steps = getattr(model, 'PAPER_STEPS_PER_SECOND', None)
  if not steps or model.PAPER_TOPOLOGY != topology.name:
    return None
  return dict(steps_per_second=steps, step_seconds=1 / steps,
              **_speed(1 / steps, tokens, topology.cores))


def _settings(task, artifact):
  """What the roofline asks of the task's Params."""
  slots = {}
  for stack, side in (('encoder', 'src'), ('decoder', 'tgt')):
    rows, length = artifact.batch[side]['ids']
    slots[stack] = max((_slots(b.feed_forward, rows * length) for b in task.Get(stack).blocks
                        if 'num_experts' in b.feed_forward), default=0)
  return roofline.Settings(
      slots=slots, activation_bytes=(task.fprop_dtype or task.dtype).size,
      remat=task.encoder.remat == 'block', microbatches=task.microbatches)


def _slots(experts, tokens):
  """Rows that the experts of a layer compute for so many tokens."""
  groups = min(experts.num_groups, tokens)
  capacity = gating.expert_capacity(tokens // groups, experts.num_experts,
                                    experts.router.capacity_factor, experts.router.min_capacity)
  return groups * experts.num_experts * capacity


def _buffer(buffer: buffers.Buffer, task, layers):
  """A buffer with the layer that it belongs to, and what would make it smaller."""
  state = _STATE.search(buffer.op_name)
  if state:
    layer, _, weight = state[2].rpartition('.')
    what = weight if state[1] == 'theta' else f'moment of {weight}'
    backward = False
  else:
    origin = dataflow.origin(buffer.op_name, layers)
    layer, what, backward = origin.layer, origin.op or buffer.instruction, origin.backward
  return dict(bytes=buffer.bytes, kind=buffer.kind, shape=buffer.shape, layer=layer, what=what,
              backward=backward, remedy=_remedy(buffer, layer, task))


def _remedy(buffer, layer, task):
  """What to change in the model's constants."""
  smaller = 'MODEL_PARTITIONS splits it along a second mesh axis'
  if buffer.kind == 'argument' or layer == dataflow.OPTIMIZER:
    return f'{smaller}; or more cores'
  ways = []
  if task.encoder.remat == 'none':
    ways.append('REMAT=block, if it is held for the backward pass')
  ways.append(f'MICROBATCHES={2 * task.microbatches}')
  if buffer.shape.startswith('f32') and (task.fprop_dtype or task.dtype).name == 'float32':
    ways.append('FPROP_DTYPE=bfloat16')
  return '; '.join(ways + [smaller])
