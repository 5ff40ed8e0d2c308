"""An artifact's functions, compiled for a mesh of devices.

The state is a dict: theta, a dict from path to weight; optimizer, the
optimiser's state; step, int32 [].
"""

import jax
from jax import export
import jax.numpy as jnp
import numpy as np
import optax

from gshard_tf import artifact as artifact_lib
from gshard_tf.runtime import mesh as mesh_lib
from gshard_tf.runtime import optimizer as optimizer_lib
from gshard_tf.runtime import partitioner


class Program:
  """Initialises, trains and evaluates a model on a mesh.

  Attributes:
    artifact: the lowered model.
    mesh: the devices.
    state_shapes: the state's tree of jax.ShapeDtypeStruct.
    state_shardings: the state's tree of NamedSharding.
  """

  def __init__(self, artifact: artifact_lib.Artifact, mesh: jax.sharding.Mesh):
    """Prepares the functions; each is compiled at its first call.

    Args:
      artifact: the lowered model.
      mesh: of the shape that the artifact was lowered for.

    Raises:
      mesh_lib.MeshError: the mesh has another shape.
    """
    if tuple(mesh.devices.shape) != artifact.mesh_shape:
      raise mesh_lib.MeshError(
          f'{artifact.model} was lowered for a mesh of {artifact.mesh_shape}, not '
          f'{tuple(mesh.devices.shape)}; lower it again')
    self.artifact = artifact
    self.mesh = mesh
    self._optimizer = optimizer_lib.adafactor(
        artifact.optimizer, [w for w in artifact.weights if w.trainable])
    self._learning_rate = optimizer_lib.learning_rate(artifact.optimizer)
    self._whole = mesh_lib.sharding(mesh, ())
    self._rows = mesh_lib.sharding(mesh, (artifact.batch_axes,))
    theta = {w.path: jax.ShapeDtypeStruct(w.shape, w.dtype) for w in artifact.weights}
    shardings = {w.path: mesh_lib.sharding(mesh, w.axes) for w in artifact.weights}
    self._trainable = [w.path for w in artifact.weights if w.trainable]
    self.state_shapes = dict(
        theta=theta, optimizer=jax.eval_shape(self._optimizer.init, self._trained(theta)),
        step=jax.ShapeDtypeStruct((), np.int32))
    self.state_shardings = dict(
        theta=shardings, step=self._whole,
        optimizer=optimizer_lib.state_shardings(
            self._optimizer, self._trained(theta), shardings))

    self.init = jax.jit(self._init, in_shardings=self._whole,
                        out_shardings=self.state_shardings)
    self.train = jax.jit(
        self._train, donate_argnums=0,
        in_shardings=(self.state_shardings, self._rows, self._whole),
        out_shardings=(self.state_shardings, self._whole))
    self.evaluate = jax.jit(self._evaluate, in_shardings=(shardings, self._rows),
                            out_shardings=self._whole)

  def function(self, name: str) -> export.Exported:
    """One of the artifact's functions, for the partitioner in use."""
    return partitioner.prepare(
        export.deserialize(bytearray(self.artifact.functions[name])), self.mesh)

  def put(self, batch):
    """Lays a batch of NumPy arrays over the devices, each its own rows."""
    return jax.device_put(batch, self._rows)

  def _init(self, seed):
    """seed int32 [] -> the state at step 0."""
    theta = self.function('init').call(seed)
    return dict(theta=theta, optimizer=self._optimizer.init(self._trained(theta)),
                step=jnp.int32(0))

  def _train(self, state, batch, seed):
    """One step: the new state, and metrics, a dict of float32 scalars and loads [E]."""
    out = self.function('train').call(state['theta'], batch, state['step'], seed)
    trained = self._trained(state['theta'])
    changes, optimizer = self._optimizer.update(out['grads'], state['optimizer'], trained)
    metrics = dict(out['metrics'], gradient_norm=optax.global_norm(out['grads']),
                   learning_rate=self._learning_rate(state['step']))
    theta = state['theta'] | optax.apply_updates(trained, changes) | out['updates']
    return dict(theta=theta, optimizer=optimizer, step=state['step'] + 1), metrics

  def _trained(self, theta):
    """The weights that the optimiser changes, of a dict by path."""
    return {path: theta[path] for path in self._trainable}

  def _evaluate(self, theta, batch):
    """From each metric's name to float32 [2, ...], value and weight."""
    return self.function('evaluate').call(theta, batch)
