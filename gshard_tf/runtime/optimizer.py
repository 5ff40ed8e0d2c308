"""Optimisers by optax, from the settings in an artifact."""

import jax
import jax.numpy as jnp
import optax


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


def adafactor(settings: dict) -> optax.GradientTransformation:
  """Adafactor (1804.04235) with the settings of 2006.16668, appendix A.2.

  Factored second moments, bias-corrected decay beta2, updates clipped by their
  root mean square and scaled by that of the weight; no first moment. Lingvo's
  XLAShardingAdafactor computes the same.

  Args:
    settings: beta2, clipping_threshold, min_dim_size_to_factor, and those of
      `learning_rate`.

  Returns:
    The gradient transformation.
  """

  def decay(step, beta2):
    step = step.astype(jnp.float32)
    return beta2 * (1. - beta2 ** step) / (1. - beta2 ** (step + 1.))

  return optax.chain(
      optax.scale_by_factored_rms(
          decay_rate=settings['beta2'], decay_rate_fn=decay,
          min_dim_size_to_factor=settings['min_dim_size_to_factor']),
      optax.clip_by_block_rms(settings['clipping_threshold']),
      optax.scale_by_param_block_rms(min_scale=1e-3),
      optax.scale_by_learning_rate(learning_rate(settings)))


def layer_by_layer(optimizer: optax.GradientTransformation,
                   stacked: dict) -> optax.GradientTransformation:
  """Applies an optimiser to each layer of a stacked weight as to a weight of its own.

  Args:
    optimizer: takes dicts by path; what its state holds of weights it holds in
      such dicts.
    stacked: from the path of each stacked weight to its number of layers.

  Returns:
    A gradient transformation whose state is that of `optimizer`, with a new
    first dimension where a weight is stacked.
  """
  groups = [{p for p, n in stacked.items() if n == size} for size in sorted(set(stacked.values()))]

  def some(tree, keep):
    return _map_dicts(lambda d: {k: v for k, v in d.items() if keep(k)}, tree)

  def run(function, *trees):
    """Calls `function` on the plain weights, and layer by layer on the others."""
    out = function(*(some(t, lambda k: k not in stacked) for t in trees))
    for group in groups:
      mine = [some(t, group.__contains__) for t in trees]
      axes = [_map_dicts(lambda d: dict.fromkeys(d, 0), t, otherwise=None) for t in mine]
      one = jax.eval_shape(function, *(_map_dicts(
          lambda d: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), d), t)
                                       for t in mine))
      out_axes = _map_dicts(lambda d: dict.fromkeys(d, 0), one, otherwise=None)
      new = jax.vmap(function, in_axes=axes, out_axes=out_axes)(*mine)
      out = jax.tree.map(lambda a, b: a | b if isinstance(a, dict) else a, out, new,
                         is_leaf=lambda n: isinstance(n, dict))
    return out

  return optax.GradientTransformation(
      lambda theta: run(optimizer.init, theta),
      lambda grads, state, theta: run(optimizer.update, grads, state, theta))


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
