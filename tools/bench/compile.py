"""Times lowering and compiling at growing numbers of partitions.

  python -m tools.bench compile
  python -m tools.bench compile --partitions=8,32 --repetitions=1 --plot=compile.png --json

One MoE block of the paper's ladder, attention and experts, forward and backward,
is lowered and compiled for TPU v3 cores that are not there: one expert, one group
and as many tokens on each core, however many there are. The paper's partitioner
makes one program for all devices, so the time ought not to grow with them
(2006.16668, section 3.3). Needs libtpu (make setup-tpu).
"""

import random
import statistics
import time
from typing import NamedTuple

from absl import flags

from gshard_tf import quiet

with quiet.libraries():
  # pylint: disable=g-import-not-at-top
  import jax
  from jax import export
  from lingvo.core import py_utils
  import matplotlib
  import numpy as np
  from rich import box
  from rich.console import Console
  from rich.table import Table
  import tensorflow as tf

  from gshard_tf import lowering
  from gshard_tf import xla_sharding
  from gshard_tf.layers import weights
  from gshard_tf.params import sharding
  from gshard_tf.params import translation
  from gshard_tf.runtime import aot
  from gshard_tf.runtime import partitioner
  from tools.bench import timing

  matplotlib.use('Agg')
  from matplotlib import pyplot as plt

# A chip has two cores.
TOPOLOGIES = {8: 'v3:2x2', 32: 'v3:4x4', 128: 'v3:8x8', 512: 'v3:16x16', 2048: 'v3:32x32'}
_TARGET = 1.6  # of the largest over the smallest
# Of a core. 4096 tokens make the least capacity of 4 places just enough for 2048
# experts, so that a core has as many slots whatever the number of experts.
_ROWS, _LENGTH = 32, 128


def add_arguments(parser):
  """Adds the command's flags to an argparse parser."""
  parser.add_argument('--partitions', default=','.join(map(str, TOPOLOGIES)),
                      help='numbers of cores, with commas (%(default)s)')
  parser.add_argument('--repetitions', type=int, default=3,
                      help='of which the median is taken (%(default)s)')
  parser.add_argument('--plot', metavar='FILE', help='draw the times to an image file')


def run(args) -> dict:
  """Measures every size in turn, in an order of its own each time.

  Args:
    args: with the attributes that `add_arguments` defines.

  Returns:
    By number of partitions the seconds, and of them those of lowering and of
    compiling; the ratio of the largest to the smallest; and the same of the time
    that processor cores took, which other programs on the machine do not change.

  Raises:
    timing.BenchError: there is no topology of so many cores, nothing to measure,
      no compiler for TPUs, or the plot cannot be written.
  """
  sizes = _sizes(args.partitions)
  if args.repetitions < 1:
    raise timing.BenchError(f'--repetitions={args.repetitions}: give 1 at least')
  if not flags.FLAGS.is_parsed():
    flags.FLAGS(['bench'])  # Lingvo's flags have their defaults
  try:
    if args.plot:
      with open(args.plot, 'ab'):  # before the work, in case it cannot be written
        pass
    aot.prepare()
    meshes = {n: aot.topology_mesh(TOPOLOGIES[n], None, sharding.MESH_AXES) for n in sizes}
  except (OSError, aot.TopologyError) as error:
    raise timing.BenchError(error) from error
  jax.config.update('jax_enable_compilation_cache', False)
  measure(meshes[min(sizes)])  # what only the first compilation takes
  order, found = random.Random(0), {n: [] for n in sizes}
  for _ in range(args.repetitions):
    for n in order.sample(sizes, len(sizes)):
      found[n].append(measure(meshes[n]))
  median = lambda part: {str(n): statistics.median(map(part, found[n])) for n in sizes}
  ratio = lambda seconds: seconds[str(max(sizes))] / seconds[str(min(sizes))]
  both, cpu = median(lambda t: t.lower + t.compile), median(lambda t: t.cpu)
  result = dict(
      seconds=both, ratio=ratio(both), lower_seconds=median(lambda t: t.lower),
      compile_seconds=median(lambda t: t.compile), cpu_seconds=cpu, cpu_ratio=ratio(cpu),
      repetitions=args.repetitions)
  if args.plot:
    plot(result, args.plot)
  return result


def _sizes(text):
  known = ', '.join(map(str, TOPOLOGIES))
  try:
    sizes = sorted({int(n) for n in text.split(',')})
  except ValueError:
    sizes = []
  if not sizes or not set(sizes) <= set(TOPOLOGIES):
    raise timing.BenchError(f'--partitions={text}: choose from {known}, with commas between them')
  return sizes


class Times(NamedTuple):
  """Seconds of lowering, of compiling, and of all processor cores in both."""
  lower: float
  compile: float
  cpu: float


def measure(mesh: jax.sharding.Mesh) -> Times:
  """Lowers and compiles the block for a mesh.

  Args:
    mesh: of TPU cores.

  Returns:
    The times.
  """
  jax.clear_caches()
  with quiet.libraries():
    start, cpu = time.perf_counter(), time.process_time()
    step, theta, axes, inputs = _block(mesh)
    exported = partitioner.prepare(
        export.deserialize(bytearray(lowering.lower(step, theta, *inputs))), mesh)
    place = lambda a: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*a))
    shardings = [{path: place(a) for path, a in axes.items()}]
    shardings += [place(sharding.MESH_AXES[:len(x.shape) > 0]) for x in inputs]
    call = jax.jit(exported.call, in_shardings=tuple(shardings))
    lowered = call.lower(theta, *inputs)
    middle = time.perf_counter()
    lowered.compile()
    return Times(middle - start, time.perf_counter() - middle, time.process_time() - cpu)


def _block(mesh):
  """The step of a sparse block, its weights' shapes and mesh axes, its inputs' shapes."""

  class Sizes(translation.Translation):
    """One expert and one group a core."""
    ROWS = DECODE_ROWS = _ROWS * mesh.size
    SOURCE_LENGTH = TARGET_LENGTH = _LENGTH
    ENCODER_LAYERS = 2
    NUM_EXPERTS = NUM_GROUPS = mesh.size

  partitioning = xla_sharding.Partitioning(
      xla_sharding.Mesh(mesh.devices.shape, mesh.axis_names), Sizes.SHARDING)
  with tf.Graph().as_default():
    py_utils.GetOrCreateGlobalStepVar()
    block = Sizes().Task().encoder.blocks[1].Set(name='block').Instantiate()
    structure = weights.weight_specs(block)
  specs = weights.flatten(structure)

  def step(theta, x, segments, number):
    """theta by path, x [B, L, M], segments int32 [B, L] -> [B, L, M], gradients by path."""
    with xla_sharding.partitioning(*partitioning), py_utils.GlobalStepContext(number):
      py_utils.ResetStepSeed(tf.cast(number, tf.int64))
      with tf.GradientTape() as tape:
        tape.watch(list(theta.values()))
        segments = xla_sharding.annotate(segments, 'bl')
        context = py_utils.NestedMap(
            paddings=tf.cast(tf.equal(segments, 0), tf.float32), ids=segments,
            self_mask=tf.equal(segments[:, :, None], segments[:, None]))
        packed = weights.pack(structure, {w.path: w.annotate(theta[w.path]) for w in specs})
        out = block.FProp(packed, xla_sharding.annotate(x, 'blm'), context)
      # Not of a mean: its gradient is a constant as large as y, which TensorFlow
      # would compute here and now.
      return out.y, tape.gradient([out.y, out.aux_loss], theta,
                                  output_gradients=[x, tf.ones([])])

  theta = {w.path: jax.ShapeDtypeStruct(w.shape, np.float32) for w in specs}
  axes = {w.path: tuple(w.axes(partitioning)) for w in specs}
  tokens = Sizes.ROWS, _LENGTH
  inputs = (jax.ShapeDtypeStruct((*tokens, Sizes.MODEL_DIM), np.float32),
            jax.ShapeDtypeStruct(tokens, np.int32), jax.ShapeDtypeStruct((), np.int32))
  return step, theta, axes, inputs


def plot(result: dict, path: str):
  """Draws the seconds over the partitions to the image file `path`."""
  figure, axes = plt.subplots(figsize=(7, 4), constrained_layout=True)
  sizes = [int(n) for n in result['seconds']]
  bottom = np.zeros(len(sizes))
  for part, name in (('lower_seconds', 'lowering'), ('compile_seconds', 'compiling')):
    heights = np.array([result[part][str(n)] for n in sizes])
    axes.bar(range(len(sizes)), heights, bottom=bottom, label=name, width=.6)
    bottom += heights
  axes.set_xticks(range(len(sizes)), sizes)
  axes.set(xlabel='partitions', ylabel='seconds')
  axes.grid(axis='y', alpha=.3)
  axes.legend()
  figure.savefig(path, dpi=120)
  plt.close(figure)


def show(result: dict):
  """Prints the times as a table."""
  table = Table(box=box.SIMPLE_HEAD, title='One MoE block, forward and backward')
  for name in ('partitions', 'lowering, s', 'compiling, s', 'both, s', 'processor time, s'):
    table.add_column(name, justify='right')
  for n in result['seconds']:
    table.add_row(n, *(f'{result[part][n]:.1f}' for part in (
        'lower_seconds', 'compile_seconds', 'seconds', 'cpu_seconds')))
  Console().print(table)
  print(f'the largest over the smallest: {result["ratio"]:.2f} (target: under '
        f'{_TARGET}); in processor time {result["cpu_ratio"]:.2f}')
