"""An MoE layer against a dense feed-forward of as many operations, and against the roofline.

One step is forward and backward: outputs and gradients of the inputs and of all
weights, float32. All tokens are one group; gating is top-2, and with a capacity
factor of 2 there are as many slots as choices. So the experts' products are those
of a dense layer of twice the hidden units, which is what `over_dense` compares with.

The roofline of a step is the time of its floating-point operations at the rate of
the dense layer's matrix product, plus that of its bytes at the bandwidth of a copy
of 256 MB (weights read forward and backward, their gradients written, activations
read and written by each product and each movement of tokens). Rates and steps are
timed in turn, several rounds; a ratio is the median of the rounds' ratios.

Memory is that of temporaries of dispatch and combine, forward and backward, as
compiled, beside the masks [G, S, E, C] of 2006.16668, section 3.1.
"""

import argparse

from gshard_tf import quiet
from tools.bench import timing

with quiet.libraries():
  # pylint: disable=g-import-not-at-top
  import jax
  from jax import export
  import jax.numpy as jnp
  import numpy as np
  from rich import box
  from rich.console import Console
  from rich.progress import Progress
  from rich.table import Table
  import tensorflow as tf

  from gshard_tf import lowering
  from gshard_tf.layers import dispatch
  from gshard_tf.layers import feed_forward
  from gshard_tf.layers import gating
  from gshard_tf.layers import moe
  from gshard_tf.layers import router
  from gshard_tf.layers import weights

_CHOICES = 2  # of a token
_COPIED = 2**28  # bytes: more than caches hold


def add_arguments(parser: argparse.ArgumentParser):
  """Adds the sizes; the defaults are those of the figures in docs/moe.md."""
  numbers = lambda text: [int(n) for n in text.split(',')]
  parser.add_argument('--experts', type=numbers, default=[8, 32, 128, 512], metavar='E,E,...',
                      help='numbers of experts (8,32,128,512; 512 takes 9 GB of memory)')
  parser.add_argument('--dispatch', default='gather', help='gather, einsum or dropless (%(default)s)')
  parser.add_argument('--tokens', type=int, default=4096, help='%(default)s')
  parser.add_argument('--model_dim', type=int, default=512, help='%(default)s')
  parser.add_argument('--hidden_dim', type=int, default=2048, help='of an expert (%(default)s)')
  parser.add_argument('--rounds', type=int, default=15, help='%(default)s')


def run(args: argparse.Namespace) -> dict:
  """Measures.

  Args:
    args: as parsed.

  Returns:
    What the command prints as JSON; seconds, bytes, operations and bytes a second.

  Raises:
    timing.BenchError: a layer refuses the sizes.
  """
  if min(args.rounds, args.tokens, *args.experts) < 1:
    raise timing.BenchError('rounds, tokens and experts must be 1 at least')
  where = timing.device()
  dense = feed_forward.FeedForward.Params().Set(
      model_dim=args.model_dim, hidden_dim=_CHOICES * args.hidden_dim)
  result = dict(device=where.device_kind, sizes={
      k: getattr(args, k) for k in ('tokens', 'model_dim', 'hidden_dim', 'dispatch', 'rounds')},
                ratios={}, experts={})
  with Progress(transient=True) as progress:
    task = progress.add_task('', total=args.rounds * len(args.experts))
    for num_experts in args.experts:
      progress.update(task, description=f'{num_experts} experts')
      found = _measure(dense, _moe_params(args, num_experts), args, where,
                       lambda: progress.advance(task))
      found['temporary_bytes'] = _memory(args, num_experts, where)
      result['experts'][str(num_experts)] = found
      result['ratios'] |= {f'moe_e{num_experts}_over_dense': found['over_dense'],
                           f'e{num_experts}_over_roofline': found['over_roofline']}
  return result


def _moe_params(args, num_experts):
  return moe.MoE.Params().Set(
      model_dim=args.model_dim, hidden_dim=args.hidden_dim, num_experts=num_experts,
      num_groups=1, dispatch=args.dispatch, router=router.Top2Router.Params().Set(
          capacity_factor=float(_CHOICES), min_capacity=1, second_expert='all'))


def _measure(dense, sparse, args, where, advance):
  """Times of the two layers and of the machine's limits, and their ratios."""
  product, operations = timing.matrix_product(
      args.tokens, args.model_dim, _CHOICES * args.hidden_dim, where)
  copy, copied = timing.copy(_COPIED, where)
  seconds = timing.interleaved(dict(
      dense=_step(dense, args, where), moe=_step(sparse, args, where), product=product, copy=copy),
                               args.rounds, advance)
  rate, bandwidth = operations / seconds['product'], copied / seconds['copy']
  flops, moved = _work(args, sparse.num_experts)
  roofline = flops / rate + moved / bandwidth
  median = lambda x: float(np.median(x))
  return dict(
      over_dense=median(seconds['moe'] / seconds['dense']),
      over_roofline=median(seconds['moe'] / roofline),
      dense_over_roofline=median(seconds['dense'] / roofline),
      moe_seconds=median(seconds['moe']), dense_seconds=median(seconds['dense']),
      roofline_seconds=median(roofline), flops=flops, bytes=moved,
      flops_per_second=median(rate), bytes_per_second=median(bandwidth))


def _work(args, num_experts):
  """Floating-point operations, and bytes read and written, of a step of the MoE layer."""
  tokens, dim, hidden = args.tokens, args.model_dim, args.hidden_dim
  choices = _CHOICES * tokens
  # Forward, gradient of the activations, gradient of the weights: three products each.
  flops = 3 * 2 * (choices * 2 * dim * hidden + tokens * dim * num_experts)
  in_weights = 3 * num_experts * 2 * dim * hidden
  in_experts = 6 * choices * (dim + hidden)
  in_dispatch = 4 * (tokens + choices) * dim  # two ways, forward and backward
  return flops, 4 * (in_weights + in_experts + in_dispatch)


def _step(params, args, where):
  """The layer's step as a timing.Program."""
  try:
    with tf.Graph().as_default():
      layer = params.Copy().Set(name='layer').Instantiate()
  except ValueError as error:
    raise timing.BenchError(str(error)) from error
  specs = weights.weight_specs(layer)

  def step(x, dy, theta):
    with tf.GradientTape() as tape:
      tape.watch((x, theta))
      out = layer.FProp(weights.pack(specs, theta), x, tf.zeros(x.shape[:2]))
    targets, gradients = [out.y, out.aux_loss], [dy, tf.ones([])]
    if not out.metrics:  # the dense layer's loss is a constant
      targets, gradients = targets[:1], gradients[:1]
    return out.y, tape.gradient(targets, (x, theta), output_gradients=gradients)

  rng = np.random.default_rng(0)
  # One expert's weights for all: the time does not depend on them.
  theta = {w.path: jnp.broadcast_to(
      rng.standard_normal(w.shape[-2:], np.float32) * w.init.stddev, w.shape)
           for w in weights.flatten(specs)}
  x, dy = rng.standard_normal((2, 1, args.tokens, args.model_dim), np.float32)
  return timing.Program(_lowered(step, x, dy, theta), (x, dy, theta), where)


def _lowered(function, *args):
  """A TensorFlow function as one of JAX, for whatever device."""
  shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), args)
  return export.deserialize(bytearray(lowering.lower(function, *shapes))).call


def _masks(routing):
  """The combine mask float32 [G, S, E, C] of the paper."""
  mask = tf.zeros([])
  for k in range(_CHOICES):
    expert, place = routing.slot[..., k] // routing.capacity, routing.slot[..., k] % routing.capacity
    mask += (routing.gate[..., k, None, None]
             * tf.one_hot(expert, routing.num_experts)[..., None]
             * tf.one_hot(place, routing.capacity)[..., None, :])
  return mask


def _dispatch_masks(x, routing):
  return tf.einsum('gsec,gsm->gecm', tf.cast(_masks(routing) > 0., x.dtype), x)


def _combine_masks(y, routing):
  return tf.einsum('gsec,gecm->gsm', _masks(routing), y)


_FORMS = {
    'masks': (_dispatch_masks, _combine_masks),
    'einsum': (dispatch.dispatch_einsum, dispatch.combine_einsum),
    'gather': (dispatch.dispatch_gather, dispatch.combine_gather),
}


def _memory(args, num_experts, where):
  """By form, the bytes of temporaries of dispatch and combine, forward and backward."""
  capacity = gating.expert_capacity(args.tokens, num_experts, _CHOICES, min_capacity=1)
  shape = (1, args.tokens, _CHOICES)
  args = (jnp.zeros([1, args.tokens, args.model_dim]), jnp.zeros(shape), jnp.zeros(shape, jnp.int32))

  def step(form, x, gate, slot):
    routing = gating.Routing(slot, gate, {}, num_experts, capacity, expert=None, entropy=None)
    dispatch_fn, combine_fn = _FORMS[form]
    with tf.GradientTape() as tape:
      tape.watch((x, gate))
      y = combine_fn(tf.square(dispatch_fn(x, routing)), routing)
    return y, tape.gradient(y, (x, gate))

  return {form: timing.Program(_lowered(lambda *a, form=form: step(form, *a), *args), args,
                               where).temporary_bytes() for form in _FORMS}


def show(result: dict):
  """Prints tables of times and of memory."""
  sizes = ', '.join(f'{k} {v}' for k, v in result['sizes'].items())
  table = Table(box=box.SIMPLE_HEAD, title=f'{result["device"]}: {sizes}')
  for name in ('experts', 'dense s', 'MoE s', 'over dense', 'roofline s', 'over roofline',
               'product GFLOP/s', 'copy GB/s'):
    table.add_column(name, justify='right')
  for num_experts, r in result['experts'].items():
    table.add_row(num_experts, f'{r["dense_seconds"]:.3f}', f'{r["moe_seconds"]:.3f}',
                  f'{r["over_dense"]:.2f}', f'{r["roofline_seconds"]:.3f}',
                  f'{r["over_roofline"]:.2f}', f'{r["flops_per_second"] / 1e9:.0f}',
                  f'{r["bytes_per_second"] / 1e9:.1f}')
  memory = Table(box=box.SIMPLE_HEAD, title='temporaries of dispatch and combine, MiB')
  for name in ('experts', *_FORMS):
    memory.add_column(name, justify='right')
  for num_experts, r in result['experts'].items():
    memory.add_row(num_experts, *(f'{r["temporary_bytes"][form] / 2**20:,.0f}' for form in _FORMS))
  console = Console()
  console.print(table)
  console.print(memory)
