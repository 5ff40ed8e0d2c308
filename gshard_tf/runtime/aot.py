"""Compiling a train step for TPUs that are not there.

The XLA TPU compiler comes with libtpu and knows every topology; what it says of
memory and time is what it plans for the hardware, and nothing is run.
"""

import importlib.util
import os
import re
import tempfile
import time
from typing import NamedTuple

import jax
from jax.experimental import topologies as jax_topologies
import numpy as np

from gshard_tf import artifact as artifact_lib
from gshard_tf.runtime import buffers as buffers_lib
from gshard_tf.runtime import collectives as collectives_lib
from gshard_tf.runtime import estimate
from gshard_tf.runtime import hlo
from gshard_tf.runtime import mesh as mesh_lib
from gshard_tf.runtime import program as program_lib
from gshard_tf.runtime import topologies

# What libtpu asks a TPU host for, answered where there is none.
_ENVIRONMENT = {'TPU_SKIP_MDS_QUERY': '1', 'TPU_ACCELERATOR_TYPE': 'v3-8',
                'TPU_WORKER_HOSTNAMES': 'localhost',
                # No chip to keep to oneself: several may compile at a time.
                'ALLOW_MULTIPLE_LIBTPU_LOAD': '1'}
# Both wordings of libtpu's refusal.
_OUT_OF_MEMORY = (re.compile(r'Used ([\d.]+[KMG]) of ([\d.]+[KMG]) hbm'),
                  re.compile(r'\(([\d.]+[KMG])\) exceeds available HBM \(([\d.]+[KMG])\)'))


class TopologyError(ValueError):
  """A topology that cannot be compiled for."""


class Report(NamedTuple):
  """What the compiler says of a train step; a core is a partition.

  What a step does counts loops as often as they run.

  Attributes:
    partitions: cores.
    fits: whether the program fits the memory of a core.
    hbm_limit: bytes that a core has.
    memory: bytes a core of arguments, temporaries and total.
    buffers: what lies in memory when most of it is used, largest first.
    compile_seconds: what compiling took here.
    flops_per_core: floating-point operations of a step. This and what follows is
      None or empty where the program does not fit.
    estimated_step_seconds: the compiler's own estimate, of a core at its limits.
    schedule_seconds: the sum of the cycles that the compiler expects of each
      operation, and of the collectives at the speed of the links; None where
      the clock of the TPU is not public.
    collectives: by kind.
    uncounted_loops: loops of unknown length, which count as if they ran once.
  """
  partitions: int
  fits: bool
  hbm_limit: int
  memory: dict[str, int]
  buffers: list[buffers_lib.Buffer]
  compile_seconds: float
  flops_per_core: float | None = None
  estimated_step_seconds: float | None = None
  schedule_seconds: float | None = None
  collectives: dict[str, collectives_lib.Total] = {}
  uncounted_loops: int = 0


def prepare():
  """Sets what libtpu needs, before JAX starts.

  Raises:
    TopologyError: libtpu is not installed.
  """
  if importlib.util.find_spec('libtpu') is None:
    raise TopologyError('libtpu, the TPU compiler, is not installed; run make setup-tpu')
  for name, value in _ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  jax.config.update('jax_platforms', 'cpu')


def topology_mesh(topology: str, sizes: tuple[int, ...] | None, axis_names,
                  last: int = 1) -> jax.sharding.Mesh:
  """A mesh over the cores of a topology.

  Args:
    topology: such as `v3:32x32`, see `topologies.find`; a v2 or v3 chip has two
      cores.
    sizes: sizes of the mesh axes; None for those of `mesh.automatic`.
    axis_names: names of the mesh axes.
    last: see `mesh.automatic`.

  Returns:
    The mesh.

  Raises:
    TopologyError: libtpu knows no such topology, or it has not as many cores as
      the mesh.
    mesh_lib.MeshError: `last` does not divide the cores.
  """
  try:
    devices = jax_topologies.get_topology_desc(topology, platform='tpu').devices
  except Exception as error:  # pylint: disable=broad-except
    reason = str(error).splitlines()[0]
    raise TopologyError(f'--topology={topology}: libtpu cannot describe it ({reason}); '
                        'give one such as v3:32x32 or v4:4x4x4') from error
  sizes = sizes or mesh_lib.automatic(len(devices), len(axis_names), last)
  if int(np.prod(sizes)) != len(devices):
    raise TopologyError(f'a mesh of {"x".join(map(str, sizes))} on the {len(devices)} cores of '
                        f'{topology}; choose sizes whose product is {len(devices)}')
  return jax.sharding.Mesh(np.array(devices).reshape(sizes), axis_names)


def lower_train_step(artifact: artifact_lib.Artifact, mesh: jax.sharding.Mesh) -> jax.stages.Lowered:
  """The train step as the training loop calls it: optimiser included, the state donated.

  Args:
    artifact: lowered for a mesh of the same shape.
    mesh: the devices.

  Returns:
    What compiles.
  """
  program = program_lib.Program(artifact, mesh)
  int32 = lambda shape: jax.ShapeDtypeStruct(shape, np.int32)
  batch = jax.tree.map(int32, artifact.batch, is_leaf=lambda s: isinstance(s, (list, tuple)))
  return program.train.lower(program.state_shapes, batch, int32(()))


def compile_program(lowered: jax.stages.Lowered, topology: topologies.Topology) -> Report:
  """Compiles for a TPU.

  Args:
    lowered: a function with shardings on devices of the topology.
    topology: the slice.

  Returns:
    The report; of a program that does not fit, what the compiler says of its
    memory.
  """
  start = time.monotonic()
  with tempfile.TemporaryDirectory() as folder:
    try:
      compiled = lowered.compile(buffers_lib.OPTIONS | {'xla_dump_to': folder})
      refusal = None
    except jax.errors.JaxRuntimeError as error:
      refusal = next(filter(None, (p.search(str(error)) for p in _OUT_OF_MEMORY)), None)
      if not refusal:
        raise
    seconds = time.monotonic() - start
    memory = buffers_lib.read(folder)
  report = Report(
      partitions=topology.cores, fits=not refusal, hbm_limit=topology.generation.hbm_limit,
      memory=dict(arguments=memory.arguments, temporaries=memory.temporaries, total=memory.total),
      buffers=memory.buffers, compile_seconds=seconds)
  if refusal:
    total, limit = map(_bytes, refusal.groups())
    return report._replace(hbm_limit=limit, memory=report.memory | dict(total=total))
  return _with_work(report, compiled, topology)


def _with_work(report, compiled, topology):
  """Adds what a step of a program that fits does, and how long that takes."""
  memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
  arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
  results = memory.output_size_in_bytes - memory.alias_size_in_bytes
  module = hlo.parse(compiled.as_text())
  work, generation = estimate.work(module), topology.generation
  rates = generation.flops, generation.hbm_bandwidth
  # XLA counts the body of a loop once; what is counted here in both ways tells
  # by how much more there is.
  more = lambda total, once: total / once if once else 1.
  flops = more(sum(w.times * w.flops for w in work), sum(w.flops for w in work))
  seconds = more(estimate.optimal_seconds(work, *rates),
                 estimate.optimal_seconds(work, *rates, once=True))
  found = collectives_lib.read(module)
  return report._replace(
      memory=dict(arguments=arguments, temporaries=temporaries,
                  total=arguments + temporaries + results),
      flops_per_core=cost.get('flops', 0.) * flops,
      estimated_step_seconds=cost.get('optimal_seconds', 0.) * seconds,
      schedule_seconds=estimate.schedule_seconds(work, found, topology),
      collectives=collectives_lib.totals(found), uncounted_loops=estimate.uncounted_loops(module))


def _bytes(text):
  """Such as 15.48G."""
  return int(float(text[:-1]) * 1024 ** ('KMG'.index(text[-1]) + 1))
