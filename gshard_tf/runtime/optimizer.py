"""Optimisers by optax, from the settings in an artifact."""

import jax
import jax.numpy as jnp
import optax

from gshard_tf import artifact as artifact_lib


def learning_rate(settings: dict):
  """Linear warm-up to the peak, then inverse square root of the step.

  Args:
    settings: learning_rate, the peak; warmup_steps.

  Returns:
    A function from the step, int32 [] from 0, to float32 [].
  """
  warmup = float(settings['warmup_steps'])

  def schedule(step):
    step = jnp.maximum(step, 1).astype(jnp.float32)
    return settings['learning_rate'] * jnp.minimum(step / warmup, jnp.sqrt(warmup / step))

  return schedule


def adafactor(settings: dict, weights: list[artifact_lib.Weight]) -> optax.GradientTransformation:
  """Adafactor (1804.04235) with the settings of 2006.16668, appendix A.2.

  Factored second moments, bias-corrected decay beta2, updates clipped by their
  root mean square and scaled by that of the weight; no first moment. Lingvo's
  XLAShardingAdafactor computes the same. Each layer of a stacked weight counts
  as a weight. The moments of experts are factored expert by expert: optax would
  factor over the two largest dimensions, and with more experts than M keep
  moments of [M, H] that are of no expert and whole on every device.

  Args:
    settings: beta2, clipping_threshold, min_dim_size_to_factor, and those of
      `learning_rate`.
    weights: what it will be applied to, as dicts by path.

  Returns:
    The gradient transformation.
  """
  stacked = {w.path: len(w.layers) for w in weights if w.layers}
  experts = {w.path: w.shape[len(w.shape) - len(w.letters)] for w in weights
             if w.letters.startswith('e') and len(w.letters) > 2}

  def decay(step, beta2):
    step = step.astype(jnp.float32)
    return beta2 * (1. - beta2 ** step) / (1. - beta2 ** (step + 1.))

  moments = optax.scale_by_factored_rms(
      decay_rate=settings['beta2'], decay_rate_fn=decay,
      min_dim_size_to_factor=settings['min_dim_size_to_factor'])
  return slice_by_slice(optax.chain(
      slice_by_slice(moments, experts),
      optax.clip_by_block_rms(settings['clipping_threshold']),
      optax.scale_by_param_block_rms(min_scale=1e-3),
      optax.scale_by_learning_rate(learning_rate(settings))), stacked)


def slice_by_slice(optimizer: optax.GradientTransformation,
                   sliced: dict) -> optax.GradientTransformation:
  """Treats each slice of some weights, along their first dimension, as a weight of its own.

  Args:
    optimizer: takes dicts by path; what its state holds of weights it holds in
      such dicts.
    sliced: from the paths of those weights to the sizes of their first dimension.

  Returns:
    A gradient transformation whose state is that of `optimizer`, with the first
    dimension of those weights before its own.
  """
  groups = [{p for p, n in sliced.items() if n == size} for size in sorted(set(sliced.values()))]

  def some(tree, keep):
    return _map_dicts(lambda d: {k: v for k, v in d.items() if keep(k)}, tree)

  def first_axis(tree):
    return _map_dicts(lambda d: dict.fromkeys(d, 0), tree, otherwise=None)

  def one_slice(tree):
    shape = lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
    return _map_dicts(lambda d: jax.tree.map(shape, d), tree)

  def apply(function, *trees):
    out = function(*(some(t, lambda path: path not in sliced) for t in trees))
    for group in groups:
      mine = [some(t, group.__contains__) for t in trees]
      if not mine[0]:
        continue
      out_axes = first_axis(jax.eval_shape(function, *map(one_slice, mine)))
      new = jax.vmap(function, in_axes=list(map(first_axis, mine)), out_axes=out_axes)(*mine)
      out = jax.tree.map(lambda a, b: a | b if isinstance(a, dict) else a, out, new,
                         is_leaf=lambda n: isinstance(n, dict))
    return out

  return optax.GradientTransformation(
      lambda theta: apply(optimizer.init, theta),
      lambda grads, state, theta: apply(optimizer.update, grads, state, theta))


def _map_dicts(function, tree, **otherwise):
  """Applies `function` to the dicts of a tree; to what is outside them `otherwise`."""
  return jax.tree.map(
      lambda n: function(n) if isinstance(n, dict) else otherwise.get('otherwise', n), tree,
      is_leaf=lambda n: isinstance(n, dict))


def state_shardings(optimizer: optax.GradientTransformation, weights: dict,
                    shardings: dict):
  """Shardings of the optimiser's state: as those of the weights.

  Args:
    optimizer: the gradient transformation.
    weights: a dict from path to jax.ShapeDtypeStruct.
    shardings: a dict from path to NamedSharding.

  Returns:
    A tree of NamedShardings in the structure of the state. A moment that lacks
    one dimension of its weight lacks its mesh axis too; anything of another
    shape is whole on every device.
  """
  mesh = next(iter(shardings.values())).mesh
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

  def of(path, moment):
    keys = [k.key for k in path if isinstance(k, jax.tree_util.DictKey)]
    if not keys:
      return whole
    weight, axes = weights[keys[-1]], shardings[keys[-1]].spec
    axes = tuple(axes) + (None,) * (len(weight.shape) - len(axes))
    if moment.shape == weight.shape:
      return shardings[keys[-1]]
    for i in reversed(range(len(weight.shape))):
      if moment.shape == weight.shape[:i] + weight.shape[i + 1:]:
        return jax.sharding.NamedSharding(
            mesh, jax.sharding.PartitionSpec(*axes[:i], *axes[i + 1:]))
    return whole

  return jax.tree_util.tree_map_with_path(of, jax.eval_shape(optimizer.init, weights))
