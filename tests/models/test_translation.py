"""The translation model: what a token's logits may depend on, and decoding step by step.

Dimensions: B rows, L target positions, T source positions, V vocabulary.
"""

import functools

from lingvo.core import py_utils
import numpy as np
import pytest
import tensorflow as tf

from gshard_tf import train_step
from gshard_tf.layers import embedding
from gshard_tf.layers import weights
from model_registry import smoke
from tests.layers import layer as layers

pytestmark = pytest.mark.slow

_B, _L, _T, _V = 4, 12, 10, 40
# Logits of order 1 after 4 blocks, some thousands of float32 operations deep.
_ATOL = 2e-5


class Small(smoke.TinyDeterministic):
  """All parts of the model, and capacity so small that training drops tokens."""
  SOURCE_VOCAB, TARGET_VOCAB = 50, _V
  MODEL_DIM, HIDDEN_DIM, NUM_HEADS, HEAD_DIM, RELATIVE_BUCKETS = 16, 24, 2, 8, 8
  NUM_EXPERTS = NUM_GROUPS = 4
  CAPACITY_FACTOR = 1.


class SmallRandom(Small):
  """With all that is random in training."""
  DROPOUT = .2
  SECOND_EXPERT = 'random'


class Model:
  """A task, its weights, and its functions compiled once for each shape."""

  def __init__(self, params):
    self.task = layers.make(params)
    self.steps = train_step.Steps(params, mesh=None)
    structure = weights.weight_specs(self.task)
    rng = np.random.default_rng(0)
    # Weights that are constant at first must count too.
    self.theta = {w.path: layers.normal(rng, *w.shape, scale=w.init.stddev or .3, mean=w.init.mean)
                  for w in weights.flatten(structure)}
    compiled = functools.partial(tf.function, jit_compile=True, autograph=False)

    @compiled
    def predict(theta, batch):
      with layers.evaluation():
        batch = train_step._nested(batch)
        theta = weights.pack(structure, theta)
        out = self.task.ComputePredictions(theta, batch)
        _, nll = embedding.cross_entropy(out.logits, batch.tgt.labels, 0.)
        metrics, _ = self.task.ComputeLoss(theta, out, batch)
        return out.logits, nll, dict(metrics)

    self.predict = lambda batch: predict(self.theta, as_tensors(batch))
    self.encode, self.decode = (functools.partial(compiled(f), self.theta)
                                for f in (self.steps.encode, self.steps.decode))
    self.train = compiled(self.steps.train)


@functools.cache
def small():
  return Model(Small().Task())


def as_tensors(tree):
  return tf.nest.map_structure(lambda a: tf.constant(a, tf.int32), tree)


def rows(pairs_of_rows):
  """Lays out sentence pairs: for each row a list of (source, target) ids."""
  side = lambda length, names: {n: np.zeros((_B, length), np.int32) for n in names}
  src = side(_T, ('ids', 'segment_ids'))
  tgt = side(_L, ('ids', 'labels', 'segment_ids'))
  spans = []
  for row, pairs in enumerate(pairs_of_rows):
    s = t = 0
    for number, (source, target) in enumerate(pairs, 1):
      src['ids'][row, s:s + len(source)] = source
      src['segment_ids'][row, s:s + len(source)] = number
      end = t + len(target)
      tgt['labels'][row, t:end] = target
      tgt['ids'][row, t:end] = [1, *target[:-1]]
      tgt['segment_ids'][row, t:end] = number
      spans.append((row, slice(t, end)))
      s, t = s + len(source), end
  return {'src': src, 'tgt': tgt}, spans


def sentences(seed, sizes):
  rng = np.random.default_rng(seed)
  return [(rng.integers(3, 50, s).tolist(), rng.integers(3, _V, t).tolist()) for s, t in sizes]


PAIRS = sentences(0, [(3, 4), (4, 2), (2, 5), (7, 6)])


def test_a_packed_row_equals_its_sentences_in_rows_of_their_own():
  packed, packed_spans = rows([PAIRS[:3], PAIRS[3:]])
  alone, alone_spans = rows([[pair] for pair in PAIRS])
  packed, alone = small().predict(packed), small().predict(alone)
  for packed_span, alone_span in zip(packed_spans, alone_spans):
    np.testing.assert_allclose(packed[1].numpy()[packed_span], alone[1].numpy()[alone_span], atol=_ATOL)
  for name in ('loss', 'nll'):
    (value, weight), (want, want_weight) = packed[2][name], alone[2][name]
    assert weight == want_weight == sum(len(target) for _, target in PAIRS)
    if name == 'nll':  # the loss has a balance loss, a mean over groups
      assert float(value) == pytest.approx(float(want), abs=_ATOL)


def test_nll_is_the_mean_over_tokens():
  batch, spans = rows([[pair] for pair in PAIRS])
  logits, nll, metrics = small().predict(batch)
  logits = logits.numpy().astype(np.float64)
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  each = [-log_p[row, span][np.arange(len(target)), target]
          for (row, span), (_, target) in zip(spans, PAIRS)]
  assert float(metrics['nll'][0]) == pytest.approx(np.concatenate(each).mean(), rel=1e-5)
  smooth = [.9 * e - .1 * log_p[row, span].mean(-1) for e, (row, span) in zip(each, spans)]
  want = np.concatenate(smooth).mean() + float(metrics['aux_loss'][0])
  assert float(metrics['loss'][0]) == pytest.approx(want, rel=1e-5)
  np.testing.assert_allclose(nll.numpy()[spans[0]], each[0], atol=_ATOL)


def test_logits_depend_on_earlier_target_tokens_alone():
  batch, _ = rows([[pair] for pair in sentences(1, [(5, _L)] * _B)])
  want = small().predict(batch)[0].numpy()
  for position in (1, 6, _L - 1):
    changed = tf.nest.map_structure(np.copy, batch)
    changed['tgt']['ids'][:, position] = (changed['tgt']['ids'][:, position] + 7) % _V
    got = small().predict(changed)[0].numpy()
    np.testing.assert_allclose(got[:, :position], want[:, :position], atol=_ATOL)
    assert np.abs(got[:, position] - want[:, position]).max() > .01


def test_every_source_token_counts_and_only_for_its_own_sentence():
  batch, spans = rows([PAIRS[:3], PAIRS[3:]])
  want = small().predict(batch)[0].numpy()
  for column in range(3):  # of the first sentence of row 0
    changed = tf.nest.map_structure(np.copy, batch)
    changed['src']['ids'][0, column] = (changed['src']['ids'][0, column] + 7) % 50
    got = small().predict(changed)[0].numpy()
    assert np.abs(got[spans[0]] - want[spans[0]]).max() > .01
    for span in spans[1:]:
      np.testing.assert_allclose(got[span], want[span], atol=_ATOL)


def test_padding_ids_change_nothing():
  batch, spans = rows([PAIRS[:3], PAIRS[3:]])
  changed = tf.nest.map_structure(np.copy, batch)
  rng = np.random.default_rng(0)
  for side in changed.values():
    padding = side['segment_ids'] == 0
    for name in set(side) - {'segment_ids'}:
      side[name][padding] = rng.integers(3, 40, padding.sum())
  (want, _, metrics), (got, _, changed_metrics) = small().predict(batch), small().predict(changed)
  for span in spans:
    np.testing.assert_allclose(got.numpy()[span], want.numpy()[span], atol=_ATOL)
  assert metrics.keys() == changed_metrics.keys() > {'loss', 'nll', 'aux_loss', 'experts/encoder.blocks_1/dropped'}
  for name, (value, _) in metrics.items():
    assert float(changed_metrics[name][0]) == pytest.approx(float(value), abs=_ATOL), name


def test_decoding_step_by_step_equals_the_whole_sequence():
  pairs = sentences(2, [(3, _L), (10, _L), (1, _L), (6, _L)])
  batch, _ = rows([[pair] for pair in pairs])
  want = small().predict(batch)[0].numpy()
  batch = as_tensors(batch)
  source = small().encode(batch['src']['ids'])
  caches = small().steps.empty_caches(_B, _L)
  for t in range(_L):
    logits, caches = small().decode(source, caches, batch['tgt']['ids'][:, t], tf.constant(t))
    np.testing.assert_allclose(logits, want[:, t], atol=_ATOL, err_msg=f'position {t}')


def decode_logits(model, sources, target):
  """Logits [rows, L, V] of a target's positions, decoded step by step from each source."""
  ids = np.zeros((_B, _T), np.int32)
  for row, source in enumerate(sources):
    ids[row, :len(source)] = source
  source = model.steps.encode(model.theta, tf.constant(ids))
  caches, logits = model.steps.empty_caches(_B, len(target)), []
  for t, token in enumerate([1, *target[:-1]]):
    step, caches = model.steps.decode(model.theta, source, caches, tf.fill([_B], token), tf.constant(t))
    logits.append(step)
  return np.stack(logits, 1)


def spread_over_neighbours(model):
  """How far the logits of a sentence go apart as its neighbours in the batch change."""
  rng = np.random.default_rng()
  source, target = rng.integers(3, 50, 6), rng.integers(3, _V, 5).tolist()
  crowd = [source] * (_B - 1)  # all alike: they want the same experts
  strangers = [rng.integers(3, 50, rng.integers(1, _T + 1)) for _ in crowd]
  alone = [[]] * (_B - 1)
  results = [decode_logits(model, [*others, source], target)[-1] for others in (crowd, strangers, alone)]
  return np.ptp(results, axis=0).max()


def test_a_translation_does_not_depend_on_its_neighbours():
  assert spread_over_neighbours(small()) < _ATOL


def test_with_tight_capacity_it_would():
  class Tight(Small):
    """As Small, with less room at evaluation than there are tokens."""
    NUM_GROUPS = 1

    def Router(self):
      return super().Router().Set(eval_capacity_factor=.5, min_capacity=1)

  model = Model(Tight().Task())
  assert max(spread_over_neighbours(model) for _ in range(2)) > 100. * _ATOL


def test_evaluate_of_the_steps_are_the_metrics_of_the_task():
  batch, _ = rows([PAIRS[:3], PAIRS[3:]])
  want = small().predict(batch)[2]
  got = small().steps.evaluate(small().theta, as_tensors(batch))
  loads = {f'experts/{stack}.blocks_1/load' for stack in ('encoder', 'decoder')}
  assert got.keys() == want.keys() | loads  # what the task returns is single numbers
  for name, pair in want.items():
    np.testing.assert_allclose(got[name], tf.stack(pair), atol=_ATOL)


def test_a_batch_of_padding_is_finite():
  batch, _ = rows([])
  out = small().train(small().theta, as_tensors(batch), tf.constant(0), tf.constant(0))
  for name, value in {**out['metrics'], **out['grads']}.items():
    assert np.isfinite(value).all(), name
  assert float(out['metrics']['nll']) == 0.


@pytest.fixture(scope='module')
def random_model():
  return Model(SmallRandom().Task())


def test_a_training_step_is_a_function_of_step_and_seed(random_model):
  batch = as_tensors(rows([PAIRS[:3], PAIRS[3:]])[0])
  at = lambda step, seed: random_model.train(
      random_model.theta, batch, tf.constant(step), tf.constant(seed))
  first, again = at(3, 8), at(3, 8)
  tf.nest.map_structure(np.testing.assert_array_equal, first, again)
  losses = {float(at(*key)['metrics']['loss']) for key in ((3, 8), (4, 8), (3, 9))}
  assert len(losses) == 3


def test_the_gradient_is_that_of_the_loss():
  # Along the gradient the loss rises by its squared norm, to first order; the
  # mean of both directions takes out the second order. The step is small, since
  # the loss jumps where a token changes experts.
  batch = as_tensors(rows([PAIRS[:3], PAIRS[3:]])[0])
  model = small()
  at = lambda theta: model.train(theta, batch, tf.constant(0), tf.constant(0))
  grads = at(model.theta)['grads']
  assert grads.keys() == model.theta.keys()
  assert all(np.abs(g).max() > 0. for g in grads.values())  # every weight is used
  norm = float(tf.linalg.global_norm(list(grads.values())))
  epsilon = 1e-3 / norm
  up, down = (float(at({k: w + sign * epsilon * grads[k] for k, w in model.theta.items()})
                    ['metrics']['loss']) for sign in (1., -1.))
  # A difference of 5e-3 of losses near 4, which have errors of about 2e-6.
  assert (up - down) / (2. * epsilon) == pytest.approx(norm**2, rel=.005)


def test_specs_are_the_same_for_the_task_and_the_steps():
  steps = small().steps
  assert steps.specs == weights.flatten(weights.weight_specs(small().task))
  init = tf.function(steps.init)(tf.constant(3))
  assert {p: tuple(w.shape) for p, w in init.items()} == {w.path: w.shape for w in steps.specs}
  assert all(w.dtype == tf.float32 for w in init.values())


def test_weights_nest_as_lingvo_has_them():
  theta = weights.pack(weights.weight_specs(small().task), small().theta)
  assert isinstance(theta, py_utils.NestedMap)
  shapes = {k: tuple(v.shape) for k, v in small().task.vars.FlattenItems()}
  assert {k: tuple(v.shape) for k, v in theta.FlattenItems()} == shapes
