"""Compiling a train step for TPUs that are not there.

The XLA TPU compiler comes with libtpu and knows every topology; what it says of
memory and time is what it plans for the hardware, and nothing is run.
"""

import importlib.util
import os
import re
import time
from typing import NamedTuple

import jax
from jax.experimental import topologies
import numpy as np

from gshard_tf import artifact as artifact_lib
from gshard_tf.runtime import program as program_lib

# What libtpu asks a TPU host for, answered where there is none.
_ENVIRONMENT = {'TPU_SKIP_MDS_QUERY': '1', 'TPU_ACCELERATOR_TYPE': 'v3-8',
                'TPU_WORKER_HOSTNAMES': 'localhost',
                # No chip to keep to oneself: several may compile at a time.
                'ALLOW_MULTIPLE_LIBTPU_LOAD': '1'}
_OUT_OF_MEMORY = re.compile(r'Used ([\d.]+)([KMG]) of ([\d.]+)([KMG]) hbm')
_COLLECTIVE = re.compile(
    r'= (.*?) (all-to-all|all-gather|all-reduce|reduce-scatter|collective-permute)(?:-start)?\(')
_SHAPE = re.compile(r'(pred|[suf]\d+|bf16)\[([\d,]*)\]')


class TopologyError(ValueError):
  """A topology that cannot be compiled for."""


class Collectives(NamedTuple):
  """The collectives of one kind: how many, and the bytes of their results a core."""
  count: int
  bytes: int


class Report(NamedTuple):
  """What the compiler says of a train step; a core is a partition.

  Attributes:
    partitions: cores.
    fits: whether the program fits the memory of a core.
    hbm_limit: bytes that a core has; None where the compiler did not name them.
    memory: bytes a core of arguments, temporaries and total. Where the program
      does not fit, the total alone.
    compile_seconds: what compiling took here.
    flops_per_core: floating-point operations of a step.
    estimated_step_seconds: the compiler's own estimate.
    collectives: by kind.
  """
  partitions: int
  fits: bool
  hbm_limit: int | None
  memory: dict[str, int]
  compile_seconds: float
  flops_per_core: float | None
  estimated_step_seconds: float | None
  collectives: dict[str, Collectives]


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


def topology_mesh(topology: str, sizes: tuple[int, ...] | None,
                  axis_names) -> jax.sharding.Mesh:
  """A mesh over the cores of a topology.

  Args:
    topology: such as `v3:32x32`: a generation and the chips along each
      dimension; a v2 or v3 chip has two cores.
    sizes: sizes of the mesh axes; None lays all cores along the first.
    axis_names: names of the mesh axes.

  Returns:
    The mesh.

  Raises:
    TopologyError: libtpu knows no such topology, or it has not as many cores as
      the mesh.
  """
  try:
    devices = topologies.get_topology_desc(topology, platform='tpu').devices
  except Exception as error:  # pylint: disable=broad-except
    reason = str(error).splitlines()[0]
    raise TopologyError(f'--topology={topology}: libtpu cannot describe it ({reason}); '
                        'give one such as v3:32x32 or v4:4x4x4') from error
  sizes = sizes or (len(devices),) + (1,) * (len(axis_names) - 1)
  if int(np.prod(sizes)) != len(devices):
    raise TopologyError(f'a mesh of {"x".join(map(str, sizes))} on the {len(devices)} cores of '
                        f'{topology}; choose sizes whose product is {len(devices)}')
  return jax.sharding.Mesh(np.array(devices).reshape(sizes), axis_names)


def compile_train_step(artifact: artifact_lib.Artifact, mesh: jax.sharding.Mesh) -> Report:
  """Compiles forward, backward and optimiser, the state donated.

  Args:
    artifact: lowered for a mesh of the same shape.
    mesh: from `topology_mesh`.

  Returns:
    The report; of a program that does not fit, what the compiler says in its
    refusal.
  """
  program = program_lib.Program(artifact, mesh)
  int32 = lambda shape: jax.ShapeDtypeStruct(shape, np.int32)
  batch = jax.tree.map(int32, artifact.batch, is_leaf=lambda s: isinstance(s, (list, tuple)))
  start = time.monotonic()
  try:
    compiled = program.train.lower(program.state_shapes, batch, int32(())).compile()
  except jax.errors.JaxRuntimeError as error:
    used = _OUT_OF_MEMORY.search(str(error))
    if not used:
      raise
    total, limit = _bytes(*used.groups()[:2]), _bytes(*used.groups()[2:])
    return Report(mesh.size, False, limit, {'total': total}, time.monotonic() - start,
                  None, None, {})
  memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
  arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
  outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
  return Report(
      partitions=mesh.size, fits=True, hbm_limit=None,
      memory=dict(arguments=arguments, temporaries=temporaries,
                  total=arguments + temporaries + outputs),
      compile_seconds=time.monotonic() - start,
      flops_per_core=cost.get('flops'), estimated_step_seconds=cost.get('optimal_seconds'),
      collectives=collectives(compiled.as_text()))


def collectives(text: str) -> dict[str, Collectives]:
  """Counts the collectives of a partitioned program.

  Args:
    text: its HLO.

  Returns:
    By kind, their number and the bytes of their results on one core.
  """
  found = {}
  for shapes, kind in _COLLECTIVE.findall(text):
    sizes = [_size(*s) for s in _SHAPE.findall(shapes)]
    count, total = found.get(kind, (0, 0))
    found[kind] = (count + 1, total + sum(sizes))
  return {kind: Collectives(*pair) for kind, pair in sorted(found.items())}


def _size(dtype, dims):
  bits = 8 if dtype == 'pred' else int(re.search(r'\d+', dtype)[0])
  elements = int(np.prod([int(d) for d in dims.split(',') if d], dtype=np.int64))
  return elements * bits // 8


def _bytes(number, unit):
  return int(float(number) * 1024 ** ('KMG'.index(unit) + 1))
