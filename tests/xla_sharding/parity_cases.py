"""One small function for every class of operators that the paper names (section 3.2).

Each takes `on`, which annotates a tensor, and its arguments. `on(x, 'x', None)`
lays the first dimension of x along mesh axis x; a mesh of one dimension has no
axis y, and what lies along y is whole there.
"""

from typing import Callable, NamedTuple

import numpy as np
import tensorflow as tf

# Sizes that the meshes divide, and sizes that they do not. A letter stands for
# the same size in all arguments of a case.
EVEN = dict(a=8, b=16, c=8, e=4, h=16, w=8, k=3, f=8, n=8)
UNEVEN = dict(a=7, b=10, c=5, e=4, h=13, w=9, k=3, f=5, n=3)


class Case(NamedTuple):
  """A function and the letters of its arguments' dimensions.

  Attributes:
    name: of the class and the operator.
    function: from `on` and tensors to tensors.
    shapes: letters for each floating argument; what is written after `int` is an
      int32 argument, with the letter of its bound last: `int abb` is [a, b] of
      numbers below b.
    compiled_reference: whether uncompiled the operator gives other results, or
      has no gradient.
  """
  name: str
  function: Callable
  shapes: tuple[str, ...]
  compiled_reference: bool = False


CASES = []


def _case(name, *shapes, compiled_reference=False):
  def register(function):
    CASES.append(Case(name, function, shapes, compiled_reference))
    return function
  return register


def arguments(case: Case, sizes: dict) -> list[np.ndarray]:
  """Random arguments of a case."""
  rng = np.random.default_rng(len(case.name))
  drawn = []
  for shape in case.shapes:
    kind, _, letters = shape.rpartition(' ')
    if kind:
      drawn.append(rng.integers(0, sizes[letters[-1]], [sizes[c] for c in letters[:-1]], np.int32))
    else:
      drawn.append(rng.standard_normal([sizes[c] for c in letters]).astype(np.float32))
  return drawn


@_case('elementwise', 'ab', 'ab')
def _(on, p, q):
  return tf.tanh(on(p, 'x', 'y')) * tf.sigmoid(on(q, 'y', 'x')) + on(p * q, None, 'x')


@_case('select', 'ab', 'ab')
def _(on, p, q):
  return tf.where(on(p, 'x', None) > on(q, None, 'x'), p * q, on(tf.exp(p), 'y', 'x'))


@_case('broadcast', 'ab', 'b')
def _(on, p, q):
  return on(on(p, 'x', 'y') + on(q, 'x'), 'y', 'x') * on(q, 'y')


@_case('einsum, batch', 'abk', 'akc')
def _(on, p, q):
  return on(tf.einsum('abk,akc->abc', on(p, 'x', None, None), on(q, 'x', None, 'y')),
            'x', None, 'y')


@_case('einsum, contracting', 'ab', 'bc')
def _(on, p, q):
  return on(tf.einsum('ab,bc->ac', on(p, 'y', 'x'), on(q, 'x', None)), 'y', None)


@_case('einsum, contracting, scattered', 'ab', 'bc')
def _(on, p, q):
  return on(tf.einsum('ab,bc->ac', on(p, None, 'x'), on(q, 'x', None)), 'x', 'y')


@_case('einsum, non-contracting on both sides', 'ab', 'bc')
def _(on, p, q):
  return on(tf.einsum('ab,bc->ac', on(p, 'x', None), on(q, None, 'y')), 'x', 'y')


@_case('einsum, non-contracting on both sides by one axis', 'ab', 'bc')
def _(on, p, q):
  return on(tf.einsum('ab,bc->ac', on(p, 'x', None), on(q, None, 'x')), 'x', None)


@_case('einsum, experts to tokens', 'abk', 'bkc')
def _(on, p, q):
  expert = on(tf.transpose(on(p, 'x', None, None), [1, 0, 2]), 'x', None, None)
  return on(tf.einsum('bak,bkc->abc', expert, on(q, 'x', None, 'y')), 'x', None, None)


@_case('reductions', 'abc')
def _(on, p):
  p = on(p, 'x', 'y', None)
  return (tf.reduce_sum(p, 0), tf.reduce_mean(p, [1, 2]), tf.reduce_max(p, 0), tf.reduce_min(p),
          tf.reduce_logsumexp(p, 1), tf.argmax(p, 0, tf.int32), tf.reduce_any(p > 2., 0))


@_case('reduction to a split result', 'abc')
def _(on, p):
  return on(tf.reduce_sum(on(p, 'x', None, None), 0), 'x', 'y'), tf.norm(on(p, None, 'x', 'y'), axis=1)


@_case('reshape, dimensions merged', 'abc')
def _(on, p):
  merged = on(tf.reshape(on(p, 'x', 'y', None), [-1, p.shape[2]]), 'x', None)
  return on(tf.reshape(merged, [-1]), 'x') ** 2


@_case('reshape, a dimension parted', 'ab')
def _(on, p):
  flat = on(tf.reshape(on(p, 'x', None), [-1]), 'x')
  return on(tf.reshape(flat, [p.shape[1], p.shape[0]]), None, 'x') ** 2


@_case('transpose', 'abc')
def _(on, p):
  return on(tf.transpose(on(p, 'x', 'y', None), [2, 0, 1]), 'x', None, 'y') ** 2


@_case('pad', 'ab')
def _(on, p):
  return on(tf.pad(on(p, 'x', 'y'), [[1, 2], [0, 3]], constant_values=.5), 'x', 'y') ** 2


@_case('mirror pad', 'ab')
def _(on, p):
  return on(tf.pad(on(p, 'x', 'y'), [[2, 1], [0, 3]], 'REFLECT'), 'x', None) ** 2


@_case('concat and split', 'ab', 'cb')
def _(on, p, q):
  joined = on(tf.concat([on(p, 'x', 'y'), on(q, 'x', None)], 0), 'x', 'y')
  left, right = tf.split(joined, [3, joined.shape[0] - 3])
  return on(left ** 2, 'x', None), tf.stack([right, right * 2.], 1)


@_case('slice', 'ab')
def _(on, p):
  p = on(p, 'x', 'y')
  return on(p[1:-2], 'x', None) ** 2, p[::2, 3:], on(p[1::3], 'x', 'y') * 2.


@_case('reverse and roll', 'ab')
def _(on, p):
  p = on(p, 'x', 'y')
  return on(tf.reverse(p, [0, 1]), 'x', None) ** 2, tf.roll(p, [3, -1], [0, 1])


@_case('tile and repeat', 'ab')
def _(on, p):
  return on(tf.tile(on(p, 'x', 'y'), [2, 3]), 'x', 'y') ** 2, tf.repeat(on(p, 'y', 'x'), 2, 0)


# Images are [N, H, W, C] and filters [3, 3, C, F].


@_case('convolution, spatial', 'nhwk', 'kkkf')
def _(on, p, q):
  return on(tf.nn.conv2d(on(p, None, 'x', 'y', None), q, 1, 'SAME'), None, 'x', 'y', None)


@_case('convolution, spatial, stride', 'nhwk', 'kkkf')
def _(on, p, q):
  return on(tf.nn.conv2d(on(p, None, 'x', 'y', None), q, 2, 'SAME'), None, 'x', 'y', None)


@_case('convolution, spatial, no padding', 'nhwk', 'kkkf')
def _(on, p, q):
  return on(tf.nn.conv2d(on(p, None, 'x', 'y', None), q, 1, 'VALID'), None, 'x', 'y', None)


@_case('convolution, spatial, dilation', 'nhwk', 'kkkf', compiled_reference=True)
def _(on, p, q):
  return on(tf.nn.conv2d(on(p, None, 'x', 'y', None), q, 1, 'SAME', dilations=2),
            None, 'x', 'y', None)


@_case('convolution, batch and features', 'nhwk', 'kkkf')
def _(on, p, q):
  return on(tf.nn.conv2d(on(p, 'x', None, None, None), on(q, None, None, None, 'y'), 1, 'SAME'),
            'x', None, None, 'y')


@_case('convolution, contracted features', 'khwf', 'kkfk')
def _(on, p, q):
  return tf.nn.conv2d(on(p, None, None, None, 'x'), on(q, None, None, 'x', None), 1, 'SAME')


@_case('convolution, by channel', 'nhwe', 'kkek')
def _(on, p, q):
  """Channels that an axis does not divide are one of XLA's faults: see xla_faults."""
  return tf.nn.depthwise_conv2d(on(p, None, 'x', None, 'y'), q, [1, 1, 1, 1], 'SAME')


@_case('convolution, one dimension', 'nhk', 'kkf')
def _(on, p, q):
  return on(tf.nn.conv1d(on(p, 'y', 'x', None), q, 1, 'SAME'), 'y', 'x', None)


@_case('convolution, transposed', 'nhwf', 'kkkf')
def _(on, p, q):
  shape = [p.shape[0], 2 * p.shape[1], 2 * p.shape[2], q.shape[2]]
  return on(tf.nn.conv2d_transpose(on(p, None, 'x', 'y', None), q, shape, 2), None, 'x', 'y', None)


@_case('pooling', 'nhwk')
def _(on, p):
  """The gradient of a maximum over overlapping windows is one of XLA's faults: see xla_faults."""
  p = on(p, None, 'x', 'y', None)
  return (tf.nn.max_pool2d(p, 2, 2, 'VALID'), on(tf.nn.avg_pool2d(p, 3, 1, 'SAME'), None, 'x', 'y', None),
          tf.nn.max_pool2d(tf.stop_gradient(p), 3, 1, 'SAME'))


@_case('pooling, overlapping, from patches', 'nhwk')
def _(on, p):
  patches = tf.image.extract_patches(
      on(p, None, 'x', 'y', None), [1, 3, 3, 1], [1, 1, 1, 1], [1, 1, 1, 1], 'VALID')
  return on(tf.reduce_max(tf.reshape(patches, [*patches.shape[:3], 9, -1]), 3), None, 'x', 'y', None)


@_case('gather', 'ab', 'int cna')
def _(on, p, index):
  return on(tf.gather(on(p, 'x', 'y'), on(index, 'x', None)), 'x', None, 'y')


@_case('gather, whole table', 'ab', 'int cna')
def _(on, p, index):
  return tf.gather(on(p, None, 'x'), on(index, 'x', 'y')) ** 2


@_case('gather, batch dimensions', 'acb', 'int anc')
def _(on, p, index):
  return on(tf.gather(on(p, 'x', None, 'y'), on(index, 'x', None), batch_dims=1), 'x', None, 'y')


@_case('gather, batch dimensions, split rows', 'acb', 'int anc')
def _(on, p, index):
  return on(tf.gather(on(p, None, 'x', 'y'), index, batch_dims=1), None, 'x', 'y')


@_case('scatter', 'ab', 'cb', 'int ca')
def _(on, p, q, index):
  q = on(q, 'x', None)
  added = tf.tensor_scatter_nd_add(on(p, 'x', 'y'), on(index, 'x')[:, None], q)
  return on(added, 'x', 'y'), tf.math.unsorted_segment_sum(q, index, p.shape[0])


@_case('scatter, unique rows', 'ab', 'kb')
def _(on, p, q):
  rows = tf.constant([[4], [0], [3]])
  return on(tf.tensor_scatter_nd_update(on(p, 'x', 'y'), rows, on(q, None, 'x')), 'x', 'y') ** 2


@_case('cumulative sums', 'ab')
def _(on, p):
  p = on(p, 'x', 'y')
  return on(tf.cumsum(p, 0), 'x', 'y'), tf.cumsum(p, 1, exclusive=True, reverse=True)


@_case('cumulative products', 'ab')
def _(on, p):
  return on(tf.math.cumprod(on(p, 'x', 'y'), 0), 'y', 'x')


@_case('cumulative sums of exponentials', 'ab')
def _(on, p):
  return on(tf.math.cumulative_logsumexp(on(p, 'x', 'y'), 0), 'x', 'y')


@_case('sort', 'ab')
def _(on, p):
  return on(tf.sort(on(p, 'x', 'y'), 0), 'x', 'y') ** 2, tf.argsort(on(p, 'x', None), 0)


@_case('sort, whole dimension', 'ab')
def _(on, p):
  return on(tf.sort(on(p, 'x', None), 1, 'DESCENDING'), 'x', 'y') ** 2


@_case('top-k', 'ab')
def _(on, p):
  value, index = tf.math.top_k(on(p, 'y', 'x'), 3)
  return on(value, 'x', None), index


@_case('softmax', 'ab')
def _(on, p):
  return on(tf.nn.softmax(on(p, 'y', 'x')), 'y', 'x'), tf.nn.log_softmax(on(p, 'x', 'y'), 0)


@_case('cross entropy', 'ab', 'int ab')
def _(on, p, label):
  return on(tf.nn.sparse_softmax_cross_entropy_with_logits(on(label, 'y'), on(p, 'y', 'x')), 'x')


@_case('dynamic slice', 'ab', 'int c')
def _(on, p, start):
  return on(tf.slice(on(p, 'x', 'y'), [start, 0], [2, 4]), 'x', 'y') ** 2


@_case('while loop', 'aa', 'ab')
def _(on, p, q):
  p = on(p, None, 'x')
  body = lambda i, q: (i + 1, on(tf.tanh(tf.einsum('ac,cb->ab', p, q)), 'x', 'y'))
  return tf.while_loop(lambda i, _: i < 3, body, (0, on(q, 'x', 'y')), maximum_iterations=3)[1]


@_case('conditional', 'ab', 'bc')
def _(on, p, q):
  y = on(tf.einsum('ab,bc->ac', on(p, 'x', None), q), 'x', 'y')
  return tf.cond(tf.reduce_sum(y) > 0, lambda: on(y * 2., 'y', 'x'), lambda: tf.sin(y))


@_case('stateless random numbers', 'ab', compiled_reference=True)
def _(on, p):
  seed = tf.constant([3, 5])
  uniform = tf.random.stateless_uniform(p.shape, seed)
  return (on(uniform, 'x', 'y'), on(tf.cast(uniform, p.dtype) * on(p, 'x', None), 'y', 'x'),
          on(tf.random.stateless_uniform(p.shape, seed, 0, 99, tf.int32), 'x', None))


@_case('normalisation', 'abc')
def _(on, p):
  p = on(p, 'x', None, 'y')
  mean, variance = tf.nn.moments(p, [0, 2], keepdims=True)
  return on((p - mean) * tf.math.rsqrt(variance + 1e-3), 'x', None, 'y')


@_case('attention', 'abkc', 'abkc')
def _(on, p, q):
  """Rows along x, heads (7 or 8, say) along y; a row of queries is [B, N, K]."""
  p, q = on(p, None, 'x', None, 'y'), on(q, None, 'x', None, 'y')
  score = tf.nn.softmax(on(tf.einsum('blnk,btnk->bnlt', p, q), None, None, 'x', None))
  return on(tf.einsum('bnlt,btnk->blnk', score, q), None, 'x', None, 'y')


@_case('triangular mask', 'aa')
def _(on, p):
  return on(tf.linalg.band_part(on(p, 'x', 'y'), -1, 0), 'y', 'x') ** 2


@_case('one-hot', 'ac', 'int ac')
def _(on, p, index):
  return on(tf.one_hot(on(index, 'x'), p.shape[1], dtype=p.dtype), 'y', 'x') * p
