"""The least time of a train step, from the shapes of a model and public rates of a TPU.

Independent of the compiler: nothing here reads a compiled program. Each part of
the model takes the longer of its arithmetic and its memory traffic, messages go
as fast as the links allow, and nothing happens at the same time as anything
else. It is an estimate. What it assumes:

* products of matrices run in bfloat16 on full matrix units, whatever the type;
* a product reads its operands and writes its result once, forward, for the
  gradient of its input and for that of its weight; weights are float32;
* recomputation does the forward part of the blocks once more, all-to-all too;
* each pass over an array of scores, probabilities or logits counts, as below;
* an array that every core sums is sent once a step, however many microbatches.

Dimensions: L positions of a row, M model, N heads, K size of a head, E experts.
"""

import math
from typing import NamedTuple

from gshard_tf import artifact as artifact_lib
from gshard_tf.runtime import topologies

PARTS = ('attention', 'dense_feed_forward', 'experts', 'gating', 'dispatch_and_combine',
         'all_to_all', 'embedding', 'softmax', 'elementwise', 'optimizer', 'all_reduce')

# Passes over an array: forward, backward. XLA fuses a softmax into the products
# around it only in part.
_SCORES = 4, 6  # of attention: written, normalised (read, written), read; their gradients likewise
_GATES = 8, 4  # over [tokens, E]: softmax, two maxima, two masks with their places
_LOGITS = 3, 4  # written, maximum, sum; their gradient
_RESIDUAL = 5, 6  # for each norm, dropout and addition
_OPTIMIZER = 6  # gradient three times, weight twice, written once; moments are factored
_CHOICES = 2  # experts of a token
_F32 = 4


class Settings(NamedTuple):
  """What the weights of a model do not tell.

  Attributes:
    slots: for `encoder` and `decoder` the rows that the experts of one layer
      compute together in a step, those that stay empty included.
    activation_bytes: of an element of the activations.
    remat: whether blocks are recomputed for the backward pass.
    microbatches: parts of a batch.
  """
  slots: dict[str, int]
  activation_bytes: int
  remat: bool
  microbatches: int


class Part(NamedTuple):
  """One part of the model on one core, in one step."""
  seconds: float = 0.
  flops: float = 0.
  bytes: float = 0.
  sent: float = 0.

  def plus(self, seconds, flops=0., bytes=0., sent=0.) -> 'Part':  # pylint: disable=redefined-builtin
    """This and more, one after the other."""
    return Part(self.seconds + seconds, self.flops + flops, self.bytes + bytes, self.sent + sent)


def roofline(artifact: artifact_lib.Artifact, topology: topologies.Topology,
             settings: Settings) -> dict[str, Part]:
  """The parts of a train step.

  Args:
    artifact: lowered for a mesh of as many devices as the topology has cores.
    topology: the slice.
    settings: see there.

  Returns:
    For each of `PARTS` a Part.
  """
  work = _Work(artifact, topology, settings)
  for weight in artifact.weights:
    layers = len(weight.layers) or 1
    work.weight(weight._replace(shape=weight.shape[1:], axes=weight.axes[1:])
                if weight.layers else weight, layers)
  return work.parts


class _Work:
  """Adds up the parts, weight by weight."""

  def __init__(self, artifact, topology, settings):
    self._topology, self._settings = topology, settings
    self._mesh = dict(zip(artifact.mesh_axes, artifact.mesh_shape))
    self._batch_axes = artifact.batch_axes
    self._rows, self._source = artifact.batch['src']['ids']
    self._target = artifact.batch['tgt']['ids'][1]
    self.parts = {name: Part() for name in PARTS}

  def weight(self, weight, layers):
    """Adds what a weight, the same in so many layers, makes a core do."""
    path = weight.path.split('.')
    tokens = self._rows * self._length(path)
    if weight.trainable:
      self._update(weight, math.prod(weight.shape) // self._partitions(weight), layers)
    if weight.letters in ('mnk', 'nkm'):
      self._attention(path, weight, tokens, layers)
    elif weight.letters in ('mh', 'hm'):
      self._product('dense_feed_forward', tokens, *weight.shape, self._rows_and(weight), weight,
                    layers)
    elif weight.letters in ('emh', 'ehm'):
      self._product('experts', self._settings.slots[path[0]], *weight.shape[1:],
                    self._partitions(weight), weight, layers)
    elif weight.letters == 'me':
      self._routing(path, weight, tokens, layers)
    elif weight.letters == 'vm':
      self._embedding(weight, tokens)
      if path[0] == 'target_embedding':
        self._softmax(weight, tokens)
    elif weight.letters == 'm':
      self._residual(tokens, weight.shape[0], layers)

  def _attention(self, path, weight, tokens, layers):
    of_source = 'cross_attention' in path
    width, heads = ((weight.shape[0], weight.shape[1:]) if weight.letters == 'mnk' else
                    (weight.shape[2], weight.shape[:2]))
    rows = self._rows * self._source if of_source and path[-1] in ('wk', 'wv') else tokens
    parts = self._rows_and(weight)
    self._product('attention', rows, width, math.prod(heads), parts, weight, layers)
    if path[-1] == 'wq':
      keys = self._source if of_source else self._length(path)
      self._scores(tokens, keys, heads, parts, layers)

  def _scores(self, tokens, keys, heads, parts, layers):
    n, k = heads
    again = 1 + self._settings.remat
    flops = 2 * 2 * tokens * keys * n * k * (2 + again) / parts * layers
    passes = _SCORES[0] * again + _SCORES[1]
    size = (tokens * keys * n * _F32 * passes +
            4 * tokens * n * k * self._settings.activation_bytes * (2 + again)) / parts * layers
    self._add('attention', flops, size)

  def _routing(self, path, weight, tokens, layers):
    """Gating, dispatch and combine, and the all-to-alls of a sparse layer."""
    width, experts = weight.shape
    parts, again = self._rows_and(weight), 1 + self._settings.remat
    self._product('gating', tokens, width, experts, parts, weight, layers)
    passes = _GATES[0] * again + _GATES[1]
    self._add('gating', 0., tokens * experts * _F32 * passes / parts * layers)
    slots = self._settings.slots[path[0]] / parts
    row = width * self._settings.activation_bytes
    rows = 2 * slots + (_CHOICES + 1) * tokens / parts
    self._add('dispatch_and_combine', 0., rows * row * (1 + again) * layers)
    for _ in range(2 * (1 + again)):  # to the experts and back
      sent = slots * row * layers
      self._send('all_to_all', self._topology.all_to_all_seconds(sent), sent)

  def _softmax(self, weight, tokens):
    vocab, width = weight.shape
    parts = math.prod(self._mesh.values())
    self._product('softmax', tokens, width, vocab, parts, weight, 1, again=1)
    self._add('softmax', 0., tokens * vocab * _F32 * sum(_LOGITS) / parts)

  def _embedding(self, weight, tokens):
    """Rows that are looked up, and the gradient of the table that they are added to."""
    vocab, width = weight.shape
    rows = 4 * tokens / self._parts(self._batch_axes) * width * self._settings.activation_bytes
    self._add('embedding', 0., rows + vocab * width * _F32)

  def _residual(self, tokens, width, layers):
    """A norm before a branch, and the addition after it."""
    passes = _RESIDUAL[0] * (1 + self._settings.remat) + _RESIDUAL[1]
    size = tokens * width * self._settings.activation_bytes / self._parts(self._batch_axes)
    self._add('elementwise', 0., size * passes * layers)
    model = math.prod(n for a, n in self._mesh.items() if a not in self._batch_axes)
    if model > 1:  # the branch's result and the gradient of its input are sums over `model`
      sent = size * layers * (2 + self._settings.remat)
      self._send('all_reduce', self._topology.ring_seconds(sent, model), sent)

  def _update(self, weight, local, layers):
    """The optimiser, and the sum of the gradient over the cores that share a weight."""
    several = self._settings.microbatches > 1
    passes = _OPTIMIZER + several * 3 * self._settings.microbatches
    self._add('optimizer', 0., passes * local * _F32 * layers)
    if not set(self._batch_axes) & {a for axes in weight.axes for a in axes}:
      size = local * _F32 * layers
      self._send('all_reduce', self._topology.all_reduce_seconds(size), size)

  def _product(self, part, rows, into, out, parts, weight, layers, again=None):
    """rows x into times into x out, and its two gradients, split over `parts` cores."""
    forward = again or 1 + self._settings.remat
    flops = 2 * rows * into * out * (forward + 2) / parts * layers
    activations = (rows / self._parts(self._batch_axes) * (into + out)
                   * self._settings.activation_bytes)
    local = math.prod(weight.shape) / self._partitions(weight) * _F32
    size = activations * (forward + 2) + local * (forward + 2) * self._settings.microbatches
    self._add(part, flops, size * layers)

  def _add(self, part, flops, size):
    generation = self._topology.generation
    seconds = max(flops / generation.flops, size / generation.hbm_bandwidth)
    self.parts[part] = self.parts[part].plus(seconds, flops, size)

  def _send(self, part, seconds, sent):
    self.parts[part] = self.parts[part].plus(seconds, sent=sent)

  def _length(self, path):
    return self._source if path[0] in ('encoder', 'source_embedding') else self._target

  def _parts(self, axes):
    return math.prod(self._mesh[a] for a in axes)

  def _partitions(self, weight):
    return self._parts([a for axes in weight.axes for a in axes])

  def _rows_and(self, weight):
    """Cores that share a product of all tokens with a weight: by rows and by weight."""
    return self._parts(set(self._batch_axes) | {a for axes in weight.axes for a in axes})
