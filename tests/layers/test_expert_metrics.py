"""Metrics of a routing against plain loops over its choices, for every router.

Dimensions: G groups, S tokens in a group, E experts, K experts chosen for a
token, M model, N languages.
"""

import math

import numpy as np
import pytest
import tensorflow as tf

from gshard_tf import xla_sharding
from gshard_tf.layers import expert_metrics
from gshard_tf.layers import gating
from gshard_tf.layers import moe
from gshard_tf.params import sharding
from gshard_tf.runtime import collectives
from gshard_tf.runtime import hlo
from tests import partitioned
from tests.layers import layer as layers
from tests.layers.routers import ROUTERS

pytestmark = pytest.mark.slow

_G, _S, _E, _M, _N = 3, 14, 4, 5, 3
_RTOL = 1e-5  # sums of 42 float32 numbers, and a division


def routed(params, step, seed=0, padding=.3):
  """A routing, at evaluation if `step` is None; its nonpadding; TOKENS_CHOOSE; logits or None."""
  layer = layers.make(params.Copy().Set(model_dim=_M, num_experts=_E))
  theta, rng = layers.draw(layer, seed), np.random.default_rng(seed)
  tokens = tf.constant(rng.standard_normal((_G, _S, _M)) + .5, tf.float32)
  nonpadding = tf.constant(rng.random((_G, _S)) >= padding, tf.float32)
  with layers.evaluation() if step is None else layers.training(step):
    routing = layer.FProp(theta, tokens, nonpadding,
                          tf.constant(rng.integers(0, 6, (_G, _S)), tf.int32))
  logits = tokens.numpy() @ theta.wg.numpy() if 'wg' in theta else None
  return routing, nonpadding.numpy(), layer.TOKENS_CHOOSE, logits


def loop(routing, nonpadding):
  """Load [E] as counts, and sums over tokens and choices, one by one."""
  load, kept, choices, tokens, bypassed = np.zeros(_E), 0, 0, 0, 0
  gates, places = [0., 0.], [0, 0]
  for token in np.ndindex(_G, _S):
    if not nonpadding[token]:
      continue
    tokens += 1
    visited = 0
    for k, (e, slot) in enumerate(zip(routing.expert[token].numpy(), routing.slot[token].numpy())):
      if e < 0:
        continue
      choices, load[e] = choices + 1, load[e] + 1
      if slot >= 0:
        visited += 1
        if k < 2:
          gates[k], places[k] = gates[k] + float(routing.gate[token][k]), places[k] + 1
    kept, bypassed = kept + visited, bypassed + (visited == 0)
  return load, choices, kept, tokens, bypassed, gates, places


@pytest.mark.parametrize('step', [None, 0])
@pytest.mark.parametrize('name', ROUTERS)
def test_equals_a_loop_over_choices(name, step):
  params = ROUTERS[name].Copy().Set(capacity_factor=.8, eval_capacity_factor=.8, min_capacity=1)
  routing, nonpadding, tokens_choose, logits = routed(params, step)
  load, choices, kept, tokens, bypassed, gates, places = loop(routing, nonpadding)
  want = dict(load=(load / choices, choices), dropped=(1 - kept / choices, choices),
              bypassed=(bypassed / tokens, tokens))
  if name != 'hash':
    want['entropy'] = None, tokens
  if tokens_choose:
    k = routing.slot.shape[-1]
    want |= {n: (g / max(p, 1), p) for n, g, p in
             list(zip(('first_gate', 'second_gate'), gates, places))[:k]}
  got = expert_metrics.measure(routing, nonpadding, tokens_choose)
  assert got.keys() == want.keys()
  for key, (value, weight) in want.items():
    assert float(got[key][1]) == weight, key
    if value is not None:
      np.testing.assert_allclose(got[key][0], value, rtol=_RTOL, atol=1e-7, err_msg=key)
  assert float(tf.reduce_sum(got['load'][0])) == pytest.approx(1.)
  assert float(got['dropped'][0]) > 0 or not tokens_choose
  # Random logits before noise, from which the distribution is a softmax.
  if name in ('all', 'random', 'sampling', 'top3', 'prioritized', 'expert_choice'):
    entropy = 0.
    for token in zip(*np.nonzero(nonpadding)):
      p = np.exp(logits[token] - logits[token].max())
      entropy -= sum(x / p.sum() * math.log(x / p.sum()) for x in p)
    assert float(got['entropy'][0]) == pytest.approx(entropy / tokens, rel=_RTOL)


@pytest.mark.parametrize('name', ['random', 'hash', 'top3', 'expert_choice', 'bounded_expert_choice'])
def test_load_by_language_equals_a_loop(name):
  routing, nonpadding, *_ = routed(ROUTERS[name].Copy().Set(capacity_factor=.8, min_capacity=1), 0)
  language = np.random.default_rng(1).integers(0, _N - 1, (_G, _S))  # none of the last
  counts = np.zeros((_N, _E))
  for token in np.ndindex(_G, _S):
    for e in routing.expert[token].numpy():
      if e >= 0:
        counts[language[token], e] += 1
  share, weight = expert_metrics.load_by_language(routing, tf.one_hot(language, _N))
  np.testing.assert_array_equal(weight, counts.sum(1, keepdims=True))
  np.testing.assert_allclose(share, counts / np.maximum(weight, 1), rtol=_RTOL)
  total = expert_metrics.measure(routing, nonpadding)['load'][0] * float(np.sum(weight))
  np.testing.assert_allclose(tf.reduce_sum(share * weight, 0), total, rtol=_RTOL)


def test_a_mean_over_parts_is_the_metric_of_the_whole():
  """Groups are routed for themselves, so those of one batch can be measured in parts."""
  routing, nonpadding, tokens_choose, _ = routed(
      ROUTERS['random'].Copy().Set(capacity_factor=.8, min_capacity=1), 0)
  nonpadding = tf.constant(nonpadding)
  whole = expert_metrics.measure(routing, nonpadding, tokens_choose)
  part = lambda a: routing._replace(**{
      n: getattr(routing, n)[a] for n in ('slot', 'gate', 'expert', 'load', 'entropy')})
  parts = [expert_metrics.measure(part(slice(g, g + 1)), nonpadding[g:g + 1]) for g in range(_G)]
  for name, (value, weight) in whole.items():
    assert float(weight) == sum(float(p[name][1]) for p in parts)
    mean = sum(p[name][0] * p[name][1] for p in parts) / weight
    np.testing.assert_allclose(mean, value, rtol=_RTOL, atol=1e-7, err_msg=name)


def test_a_batch_of_padding_weighs_nothing():
  routing, nonpadding, *_ = routed(ROUTERS['random'], 0, padding=1.1)
  for name, (value, weight) in expert_metrics.measure(routing, nonpadding).items():
    assert not weight and not np.any(value), name


def test_dead_experts():
  assert float(expert_metrics.dead(tf.constant([.5, 0., .25, 0., .25]))) == 2


def test_no_gradient_passes():
  logits = tf.random.stateless_normal([2, 6, 4], [1, 2])
  with tf.GradientTape() as tape:
    tape.watch(logits)
    probability = tf.nn.softmax(logits)
    expert = gating.choose(logits, 2)
    choices = gating.Choices(expert, gating.at(probability, expert), probability)
    metrics = expert_metrics.measure(gating.assign(choices, tf.ones([2, 6]), 2), tf.ones([2, 6]))
    total = tf.add_n([tf.reduce_sum(v) for v, _ in metrics.values()])
  assert tape.gradient(total, logits) is None


@pytest.mark.parametrize('name', ['random', 'hash', 'sigmoid', 'bounded_expert_choice'])
def test_a_partitioned_layer_reduces_a_few_numbers_for_them(name):
  """Rows on 8 devices: beside the layer's own collectives, sums of E or N * E numbers."""
  mesh = xla_sharding.Mesh((8, 1), sharding.MESH_AXES)
  layer = layers.make(moe.MoE.Params().Set(
      model_dim=_M, hidden_dim=6, num_experts=8, num_groups=8, router=ROUTERS[name].Copy()))
  theta, rng = layers.draw(layer, 0), np.random.default_rng(0)
  args = [rng.standard_normal((16, 24, _M), np.float32),
          rng.integers(0, 2, (16, 24)).astype(np.float32),
          rng.integers(0, 9, (16, 24)).astype(np.int32), rng.integers(0, _N, (16, 24)).astype(np.int32)]

  def run(measured, x, paddings, ids, language):
    with xla_sharding.partitioning(mesh, sharding.GSHARD), layers.training():
      x = xla_sharding.annotate(x, 'blm')
      paddings, ids, language = (xla_sharding.annotate(a, 'bl') for a in (paddings, ids, language))
      out = layer.FProp(theta, x, paddings, ids, tf.one_hot(language, _N))
    return dict(y=out.y, **dict(out.metrics) if measured else {})

  def compiled(measured):
    program = partitioned.compile_on(
        mesh, lambda *a: run(measured, *a), *args, split_results=True)
    return program, collectives.read(hlo.parse(program.as_text()))

  program, with_metrics = compiled(True)
  _, without = compiled(False)
  sizes = lambda found, kind: sorted(c.bytes for c in found if c.kind == kind)
  for kind in collectives.KINDS:
    if kind != 'all-reduce':
      assert sizes(with_metrics, kind) == sizes(without, kind), kind
  added = sum(sizes(with_metrics, 'all-reduce')) - sum(sizes(without, 'all-reduce'))
  assert 0 < added <= 4 * (8 + 8 * _N + 16)  # load, load_by_language, and single numbers
  got = program(*args)
  with layers.training():
    want = layer.FProp(theta, *map(tf.constant, args[:3]), tf.one_hot(args[3], _N)).metrics
  assert got.keys() == want.keys() | {'y'}
  for key, pair in want.items():
    for g, w in zip(got[key], pair):
      np.testing.assert_allclose(g, w, rtol=_RTOL, atol=1e-7, err_msg=key)
