"""Checkpoints of the sharded training state, by orbax."""

import os

import jax
import orbax.checkpoint as ocp


class Checkpoints:
  """The checkpoints in one folder, by step.

  A checkpoint is the state (arrays, written by the devices that hold them, and
  restored to whatever devices there are) and a position, the small JSON that
  tells where reading the input goes on.
  """

  def __init__(self, folder: str, keep: int = 3):
    """Opens or makes the folder.

    Args:
      folder: where the checkpoints are.
      keep: how many of the newest stay.
    """
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
          state=ocp.args.PyTreeSave(state), position=ocp.args.JsonSave(position)))

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
    restored = self._manager.restore(step, args=ocp.args.Composite(
        state=ocp.args.PyTreeRestore(abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
                                     partial_restore=True),
        position=ocp.args.JsonRestore()))
    return restored.state, restored.position

  def close(self):
    """Waits for the last checkpoint to be written whole."""
    self._manager.wait_until_finished()
    self._manager.close()
