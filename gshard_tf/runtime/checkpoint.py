"""Checkpoints of the sharded training state, by orbax."""

import os
from typing import Sequence

import jax
import orbax.checkpoint as ocp

from gshard_tf import artifact as artifact_lib
from gshard_tf.runtime import stacking


class Checkpoints:
  """The checkpoints in one folder, by step.

  A checkpoint is the state (arrays, written by the devices that hold them, and
  restored to whatever devices there are) and a position, the small JSON that
  tells where reading the input goes on. Stacked weights are written layer by
  layer, so that programs with and without a loop over layers read one another's.
  """

  def __init__(self, folder: str, weights: Sequence[artifact_lib.Weight], keep: int = 3):
    """Opens or makes the folder.

    Args:
      folder: where the checkpoints are.
      weights: of the program whose states are saved and restored.
      keep: how many of the newest stay.
    """
    self._weights = weights
    self._manager = ocp.CheckpointManager(
        os.path.abspath(folder),
        options=ocp.CheckpointManagerOptions(max_to_keep=keep),
        item_names=('state', 'position'))

  def latest_step(self) -> int | None:
    """The newest checkpoint's step, None without any."""
    return self._manager.latest_step()

  def save(self, step: int, state, position: dict):
    """Begins to write a checkpoint; `close` waits for it.

    Args:
      step: its step; one that is there already is not written again.
      state: a tree of jax.Array.
      position: JSON.
    """
    if step != self.latest_step():
      self._manager.save(step, args=ocp.args.Composite(
          state=ocp.args.PyTreeSave(self._split(state)), position=ocp.args.JsonSave(position)))

  def restore(self, step: int, state, shardings):
    """Reads a checkpoint.

    Args:
      step: which.
      state: a tree of jax.ShapeDtypeStruct, the whole state or its top-level
        keys that are wanted.
      shardings: a tree like `state`.

    Returns:
      The state, each device with its own shards, and the position.
    """
    abstract = jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
        state, shardings)
    abstract = self._split(abstract)
    restored = self._manager.restore(step, args=ocp.args.Composite(
        state=ocp.args.PyTreeRestore(abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
                                     partial_restore=True),
        position=ocp.args.JsonRestore()))
    return stacking.join_layers(
        restored.state, state, self._weights, shardings), restored.position

  def _split(self, state):
    return stacking.split_layers(state, self._weights, stacking.layer_of)

  def close(self):
    """Waits for the last checkpoint to be written whole."""
    self._manager.wait_until_finished()
    self._manager.close()
