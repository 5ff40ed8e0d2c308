"""A lowered model on disk: what runs and trains it without TensorFlow.

A folder of `model.json`, one serialised `jax.export` program for each function
(`init`, `train`, `evaluate`, `encode`, `decode`), and the vocabularies.
"""

import dataclasses
import json
import os
import shutil
from typing import NamedTuple

_DESCRIPTION = 'model.json'


class Weight(NamedTuple):
  """One weight: global shape, type, the mesh axes each dimension is stored along, its letters.

  A stacked weight holds that of several layers along its first dimension;
  `layers` are their paths, and a checkpoint holds them one by one. A weight that
  is not `trainable` is changed by the step's updates, not by gradients.
  """
  path: str
  shape: tuple[int, ...]
  dtype: str
  axes: tuple[tuple[str, ...], ...]
  letters: str = ''
  layers: tuple[str, ...] = ()
  trainable: bool = True

  def of_layers(self) -> list[tuple]:
    """Path, shape and type of the weight, of a stacked one for each layer."""
    if not self.layers:
      return [(self.path, self.shape, self.dtype)]
    return [(path, self.shape[1:], self.dtype) for path in self.layers]


@dataclasses.dataclass
class Artifact:
  """A lowered model.

  Attributes:
    model: its registered name.
    mesh_shape: the mesh that it was lowered for.
    mesh_axes: the names of the mesh's axes.
    weights: in order of their paths.
    batch: nested dicts of the global shapes of a training batch, all int32.
    batch_axes: mesh axes that the rows of a batch lie along.
    decode_rows: rows of one decoding step.
    optimizer: settings for `runtime.optimizer`.
    inputs: for each data set the path of its corpus.
    vocabularies: paths of the SentencePiece models `source` and `target`.
    functions: serialised programs by name.
    languages: codes of those that the batches of `evaluate` tell apart: both
      sides have `language`, int32 [B, L], numbers of codes. Empty: they do not.
  """
  model: str
  mesh_shape: tuple[int, ...]
  mesh_axes: tuple[str, ...]
  weights: list[Weight]
  batch: dict
  batch_axes: tuple[str, ...]
  decode_rows: int
  optimizer: dict
  inputs: dict
  vocabularies: dict
  functions: dict
  languages: tuple[str, ...] = ()

  @property
  def num_parameters(self) -> int:
    """Elements of all weights together."""
    total = 0
    for weight in self.weights:
      size = 1
      for n in weight.shape:
        size *= n
      total += size
    return total

  def save(self, folder: str):
    """Writes the artifact, replacing one that is there; copies vocabularies."""
    temporary = f'{folder}.writing'
    shutil.rmtree(temporary, ignore_errors=True)
    os.makedirs(temporary)
    description = dataclasses.asdict(self)
    description['functions'] = sorted(self.functions)
    description['weights'] = [tuple(w) for w in self.weights]
    for side, path in self.vocabularies.items():
      shutil.copyfile(path, os.path.join(temporary, f'{side}.model'))
    del description['vocabularies']
    for name, program in self.functions.items():
      with open(os.path.join(temporary, f'{name}.jaxexport'), 'wb') as f:
        f.write(program)
    with open(os.path.join(temporary, _DESCRIPTION), 'w') as f:
      json.dump(description, f, indent=1)
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(temporary, folder)

  @classmethod
  def load(cls, folder: str) -> 'Artifact':
    """Reads an artifact.

    Raises:
      FileNotFoundError: there is none in `folder`.
    """
    with open(os.path.join(folder, _DESCRIPTION)) as f:
      description = json.load(f)
    functions = {}
    for name in description.pop('functions'):
      with open(os.path.join(folder, f'{name}.jaxexport'), 'rb') as f:
        functions[name] = f.read()
    description['weights'] = [
        Weight(path, tuple(shape), dtype, tuple(map(tuple, axes)), letters, tuple(layers),
               trainable)
        for path, shape, dtype, axes, letters, layers, trainable in description['weights']]
    for name in ('mesh_shape', 'mesh_axes', 'batch_axes', 'languages'):
      description[name] = tuple(description.get(name, ()))
    return cls(functions=functions, vocabularies={
        side: os.path.join(folder, f'{side}.model') for side in ('source', 'target')},
               **description)
