"""Stacked weights and their layers' own: what a program takes, what a checkpoint holds.

A program that runs layers in a loop takes the same weight of all of them as one
array. A checkpoint holds each layer's for itself, so that it serves programs with
and without a loop alike.
"""

from typing import Callable, Sequence

import jax
import jax.numpy as jnp

from gshard_tf import artifact as artifact_lib


def split_layers(tree, weights: Sequence[artifact_lib.Weight], take: Callable):
  """Replaces what belongs to a stacked weight by what belongs to its layers.

  Args:
    tree: a state or a part of it: wherever it holds a dict by path, the paths of
      `weights`.
    weights: of the program.
    take: from a leaf and a layer's number to that layer's part.

  Returns:
    The tree, its dicts by the layers' paths.
  """
  layers = {w.path: w.layers for w in weights if w.layers}

  def convert(node):
    if not isinstance(node, dict):
      return node
    split = {}
    for key, value in node.items():
      if key in layers:
        split |= {path: take(value, i) for i, path in enumerate(layers[key])}
      else:
        split[key] = walk(value)
    return split

  def walk(node):
    return jax.tree.map(convert, node, is_leaf=lambda n: isinstance(n, dict))

  return walk(tree)


def join_layers(tree, like, weights: Sequence[artifact_lib.Weight], shardings):
  """The inverse of `split_layers` for arrays.

  Args:
    tree: arrays by the layers' paths.
    like: the tree wanted: any leaves, by the paths of `weights`.
    weights: of the program.
    shardings: a tree like `like`.

  Returns:
    A tree like `like`.
  """
  layers = {w.path: w.layers for w in weights if w.layers}
  if not layers:
    return tree

  def convert(node, like_node, sharding):
    if not isinstance(like_node, dict):
      return node
    joined = {}
    for key, value in like_node.items():
      if key in layers:
        stack = jax.jit(lambda *own: jnp.stack(own), out_shardings=sharding[key])
        joined[key] = stack(*(node[path] for path in layers[key]))
      else:
        joined[key] = walk(node[key], value, sharding[key])
    return joined

  def walk(node, like_node, sharding):
    is_dict = lambda n: isinstance(n, dict)
    return jax.tree.map(lambda l, n, s: convert(n, l, s), like_node, node, sharding,
                        is_leaf=is_dict)

  return walk(tree, like, shardings)


def layer_of(leaf, i: int):
  """Layer `i` of a stacked array, or of the ShapeDtypeStruct of one."""
  if isinstance(leaf, jax.ShapeDtypeStruct):
    sharding = leaf.sharding
    if sharding is not None:
      sharding = jax.sharding.NamedSharding(
          sharding.mesh, jax.sharding.PartitionSpec(*sharding.spec[1:]))
    return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=sharding)
  return leaf[i]
