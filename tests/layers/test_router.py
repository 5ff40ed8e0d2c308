"""Routers: what is random when, in which type, losses, updates, and their partitioned program.

Dimensions: G groups, S tokens in a group, E experts, M model, K experts chosen
for a token.
"""

import re

import jax
from jax.experimental import jax2tf
from jax.sharding import NamedSharding, PartitionSpec
from lingvo.core import py_utils
import numpy as np
import pytest
import tensorflow as tf

from gshard_tf import xla_sharding
from gshard_tf.layers import gating
from gshard_tf.layers import randomness
from gshard_tf.layers import router
from gshard_tf.layers import token_choice
from gshard_tf.params import sharding
from tests.layers import layer as layers
from tests.layers.routers import ROUTERS

pytestmark = pytest.mark.slow

_G, _S, _M, _E = 2, 12, 5, 4


_MADE = {}  # the layer and weights of each Params, of which making takes the longest


def make(params):
  key = params.ToText()
  if key not in _MADE:
    layer = layers.make(params.Copy().Set(model_dim=_M, num_experts=_E))
    _MADE[key] = layer, layers.draw(layer, seed=0)
  layer, theta = _MADE[key]
  return layer, theta.copy()


def inputs(padding=.3):
  rng = np.random.default_rng()
  return (tf.constant(rng.standard_normal((_G, _S, _M)), tf.float32),
          tf.constant(rng.random((_G, _S)) >= padding, tf.float32),
          tf.constant(rng.integers(0, 100, (_G, _S)), tf.int32))


def route(params, args, step=None):
  """Routes in the training step `step`, or at evaluation; a dict of NumPy arrays."""
  layer, theta = make(params)
  with layers.evaluation() if step is None else layers.training(step):
    routing = layer.FProp(theta, *args)
    aux_loss = layer.AuxLoss(routing)
  losses = {f'{name}_loss': loss for name, loss in routing.losses.items()}
  return {k: np.asarray(v) for k, v in (routing._asdict() | losses).items()
          if k != 'losses' and v is not None} | {'aux_loss': aux_loss.numpy()}


def same(a, b):
  return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize('name', ROUTERS)
def test_evaluation_is_deterministic(name):
  args = inputs()
  params = ROUTERS[name].Copy()
  want = route(params, args)
  assert same(want, route(params, args))
  if 'input_jitter' in params:
    assert same(want, route(params.Set(input_jitter=.5), args))


@pytest.mark.parametrize('name', ['switch', 'random', 'sampling', 'noisy'])
def test_training_is_random_by_step(name):
  args = inputs(padding=0.)
  params = ROUTERS[name].Copy()
  assert same(route(params, args, step=3), route(params, args, step=3))
  assert not same(route(params, args, step=3), route(params, args, step=4))
  assert not same(route(params, args, step=3), route(params, args))


@pytest.mark.parametrize('name', ROUTERS)
def test_routes_in_float32_whatever_the_activations_are(name):
  tokens, nonpadding, ids = inputs()
  tokens = tf.cast(tokens, tf.bfloat16)
  got = route(ROUTERS[name], (tokens, nonpadding, ids))
  assert ('entropy' in got) == (name != 'hash')
  assert all(got[k].dtype == np.float32 for k in ('gate', 'load', 'entropy') if k in got)
  assert same(got, route(ROUTERS[name], (tf.cast(tokens, tf.float32), nonpadding, ids)))


@pytest.mark.parametrize('name', ROUTERS)
def test_capacity_at_evaluation_is_its_own(name):
  args = inputs(padding=0.)
  params = ROUTERS[name].Copy().Set(capacity_factor=1., eval_capacity_factor=.5, min_capacity=1)
  assert route(params, args, step=0)['capacity'] == 3  # 12 tokens over 4 experts
  got = route(params, args)
  assert got['capacity'] == 2
  assert (got['slot'] >= 0).sum() <= _G * _E * 2
  if not params.cls.NEEDS_CAPACITY:
    got = route(params.Set(eval_capacity_factor=None), args)
    assert got['capacity'] == _S
    np.testing.assert_array_equal(got['slot'] >= 0, got['expert'] >= 0)


@pytest.mark.parametrize('name', ROUTERS)
@pytest.mark.parametrize('step', [None, 0])
def test_padding_is_not_routed_and_takes_no_place(name, step):
  tokens, nonpadding, ids = inputs()
  other = tf.where(nonpadding[..., None] > 0, tokens, 100.)
  params = ROUTERS[name].Copy().Set(capacity_factor=1., eval_capacity_factor=1., min_capacity=1)
  want, got = (route(params, (t, nonpadding, ids), step) for t in (tokens, other))
  for routing in (want, got):
    routing.pop('entropy', None)  # padding has one, which nobody asks for
  for key, value in want.items():
    np.testing.assert_allclose(got[key], value, rtol=1e-6, err_msg=key)
  padding = nonpadding.numpy() == 0
  assert (want['expert'][padding] == -1).all() and (want['slot'][padding] == -1).all()
  assert (want['gate'][padding] == 0).all()


@pytest.mark.parametrize('name', ROUTERS)
def test_aux_loss_is_the_weighted_sum_of_the_losses(name):
  params = ROUTERS[name].Copy()
  args, want = inputs(), 0.
  if 'z_loss_weight' in params:
    params.z_loss_weight = .5
  got = route(params, args, step=0)
  for loss in ('balance', 'importance', 'load', 'z'):
    assert (f'{loss}_loss' in got) == (f'{loss}_loss_weight' in params)
    if f'{loss}_loss' in got:
      want += params.Get(f'{loss}_loss_weight') * float(got[f'{loss}_loss'])
  assert float(got['aux_loss']) == pytest.approx(want, rel=1e-6)


def test_jitter_scales_what_the_router_sees(monkeypatch):
  args = inputs()
  uniform = np.random.default_rng().random((_G, _S, _M), np.float32)
  monkeypatch.setattr(randomness, 'uniform', lambda layer, shape, letters: tf.constant(uniform))
  params = ROUTERS['switch'].Copy().Set(input_jitter=.25)
  got = route(params, args, step=0)
  scaled = args[0] * (.75 + .5 * uniform)
  want = route(params.Copy().Set(input_jitter=0.), (scaled, *args[1:]), step=0)
  np.testing.assert_array_equal(got['expert'], want['expert'])
  np.testing.assert_allclose(got['gate'], want['gate'], atol=1e-6)


def test_second_expert_at_random_is_kept_in_proportion_to_its_gate():
  layer, theta = make(ROUTERS['random'].Copy().Set(capacity_factor=None))
  theta.wg = tf.concat([tf.fill([_M, 1], 1.), tf.zeros([_M, 1]), tf.fill([_M, 2], -100.)], 1)
  tokens = tf.fill([64, 64, _M], .2)  # logits 1, 0, -20, -20: gates .731, .269
  with layers.training():
    expert = layer.FProp(theta, tokens, tf.ones([64, 64])).expert.numpy()
  share = 2. / (1. + np.e)  # twice the gate
  assert (expert[..., 0] == 0).all()
  assert np.mean(expert[..., 1] == 1) == pytest.approx(
      share, abs=5. * np.sqrt(share * (1. - share) / 64**2))  # 5 sigma
  assert set(np.unique(expert[..., 1])) == {-1, 1}


@pytest.mark.parametrize('k', [1, 2, 3])
def test_noisy_top_k(monkeypatch, k):
  """1701.06538, section 2.1 (equations 3 to 5), section 4 and appendix A."""
  tokens, nonpadding, _ = inputs()
  noise = np.random.default_rng().standard_normal((_G, _S, _E)).astype(np.float32)
  monkeypatch.setattr(randomness, 'normal', lambda layer, shape, letters: tf.constant(noise))
  params = ROUTERS['noisy'].Copy().Set(k=k, capacity_factor=None)
  _, theta = make(params)
  got = route(params, (tokens, nonpadding), step=0)

  x, wg, wn = (np.asarray(a, np.float64) for a in (tokens, theta.wg, theta.wn))
  clean, scale = x @ wg, np.log1p(np.exp(x @ wn))
  noisy = clean + noise * scale
  variations = []
  for g in range(_G):
    importance, smooth = np.zeros(_E), np.zeros(_E)
    for s in np.flatnonzero(nonpadding[g]):
      chosen = np.argsort(-noisy[g, s])[:k]
      gates = np.exp(noisy[g, s][chosen])
      gates /= gates.sum()
      np.testing.assert_array_equal(got['expert'][g, s], chosen)
      np.testing.assert_allclose(got['gate'][g, s], gates, atol=1e-6)
      importance[chosen] += gates
      smooth += token_choice.noisy_load(
          *(tf.constant(a[g:g + 1, s:s + 1], tf.float32) for a in (clean, scale, noisy)), k).numpy()[0, 0]
    variations.append([v.var() / v.mean()**2 for v in (importance, smooth)])
  want = np.mean(variations, 0)
  np.testing.assert_allclose([got['importance_loss'], got['load_loss']], want, rtol=1e-3, atol=1e-5)
  # At evaluation there is no noise.
  quiet = route(params, (tokens, tf.ones([_G, _S])))
  np.testing.assert_array_equal(quiet['expert'], np.argsort(-clean, -1)[..., :k])


def test_both_weights_of_the_noisy_router_are_trained():
  layer, theta = make(ROUTERS['noisy'])
  tokens, nonpadding, _ = inputs()
  with layers.training(), tf.GradientTape() as tape:
    tape.watch(theta.Flatten())
    routing = layer.FProp(theta, tokens, nonpadding)
    loss = layer.AuxLoss(routing) + tf.reduce_sum(tf.sin(routing.gate))
  for gradient in tape.gradient(loss, theta.Flatten()):
    assert np.abs(gradient).max() > 0.


def test_updates_move_the_bias_towards_balance():
  layer, theta = make(ROUTERS['sigmoid'].Copy().Set(bias_update_rate=.02))
  tokens, nonpadding, _ = inputs()
  theta.bias = tf.constant([1., 0., 0., -1.])

  @tf.function(autograph=False)
  def step(theta):
    with layers.training():
      routing = layer.FProp(theta, tokens, nonpadding)
    return layer.Updates(theta, routing), tf.reduce_sum(gating.load(routing.expert, _E), [0, 1])

  spread = []
  for _ in range(100):
    updates, load = step(theta)
    change = np.sign(np.mean(load) - load) * .02
    assert list(updates) == ['bias']
    np.testing.assert_allclose(updates.bias, theta.bias + change, atol=1e-6)
    theta.bias = theta.bias + change.astype(np.float32)
    spread.append(np.std(load))
  assert np.mean(spread[-20:]) < spread[0] / 2


def test_hash_router_needs_ids():
  layer, theta = make(ROUTERS['hash'])
  with pytest.raises(ValueError, match='needs the ids of the tokens'):
    layer.FProp(theta, *inputs()[:2])


_COLLECTIVE = re.compile(r'\b(all-to-all|all-reduce|all-gather|reduce-scatter|collective-permute)(-start)?\(')


# Those that differ in their operations.
@pytest.mark.parametrize('name', ['prioritized', 'sigmoid', 'bounded_expert_choice'])
def test_partitioned_along_groups_routing_stays_on_each_device(name):
  groups = 24  # 3 on each device; no other dimension has that size
  layer, theta = make(ROUTERS[name].Copy().Set(capacity_factor=1.))
  mesh = xla_sharding.Mesh((8, 1), sharding.MESH_AXES)

  def step(theta, tokens, nonpadding, ids):
    annotate = xla_sharding.annotate
    with xla_sharding.partitioning(mesh, sharding.GSHARD), layers.training(), tf.GradientTape() as tape:
      tape.watch(tokens)
      routing = layer.FProp(py_utils.NestedMap(theta), annotate(tokens, 'gsm'),
                            annotate(nonpadding, 'gs'), annotate(ids, 'gs'))
      total = tf.reduce_sum(tf.sin(routing.gate), [1, 2])
      gradient = tape.gradient(total, tokens, unconnected_gradients='zero')
    return routing.slot, routing.gate, routing.expert, annotate(gradient, 'gsm')

  rng = np.random.default_rng(0)
  args = (rng.standard_normal((groups, _S, _M), np.float32), np.ones((groups, _S), np.float32),
          rng.integers(0, 99, (groups, _S)).astype(np.int32))
  theta = {k: w.numpy() for k, w in theta.items()}
  split = NamedSharding(jax.make_mesh((8,), ('d',)), PartitionSpec('d'))
  whole = NamedSharding(split.mesh, PartitionSpec())
  step = tf.function(step, jit_compile=True, autograph=False)
  compiled = jax.jit(jax2tf.call_tf(step), in_shardings=(whole, split, split, split),
                     out_shardings=split).lower(theta, *args).compile()
  text = compiled.as_text()
  assert 'num_partitions=8' in text
  assert not _COLLECTIVE.search(text)
  assert not re.search(rf'\[{groups},', text)  # no tensor of all groups, in whatever operation
  got = compiled(theta, *jax.device_put(args, split))
  for g, w in zip(got, step(theta, *args)):
    np.testing.assert_allclose(g, w, atol=1e-5)


@pytest.mark.parametrize('family, bad, message', [
    (router.Top2Router, dict(num_experts=1), 'k is 2, but there are 1 experts; set k to 1'),
    (router.Top2Router, dict(num_experts=0), 'num_experts is 0; set 1 at least'),
    (router.Top2Router, dict(second_expert='both'),
     "second_expert is 'both'; choose one of all, random, sampling"),
    (router.Top2Router, dict(capacity_factor=-.5), 'capacity_factor is -0.5, places for '
     'each token; set a number over 0'),
    (router.Top2Router, dict(eval_capacity_factor=0.), 'eval_capacity_factor is 0.0'),
    (router.Top2Router, dict(min_capacity=0), 'min_capacity is 0; an expert needs 1 place'),
    (router.TopKRouter, dict(k=0), 'k is 0; a token needs 1 expert at least'),
    (router.TopKRouter, dict(k=5), 'k is 5, but there are 4 experts; set k to 4 at most'),
    (router.TopKRouter, dict(model_dim=0), 'wg of shape (0, 4): set every size'),
    (router.SwitchRouter, dict(input_jitter=1.), 'input_jitter is 1.0; set a number'),
    (router.NoisyTopKRouter, dict(k=4), 'k is 4 of 4 experts; the load that the loss is of '
     'needs one expert more than k; set k to 3 at most'),
    (router.SigmoidRouter, dict(num_nodes=3), '4 experts do not split over 3 nodes; set '
     'num_nodes to a divisor of 4'),
    (router.SigmoidRouter, dict(num_nodes=2, max_nodes=3),
     'max_nodes is 3 of num_nodes 2; set it from 1 to 2'),
    (router.SigmoidRouter, dict(num_nodes=4, max_nodes=2, k=3),
     'k is 3, which 2 nodes do not divide; set max_nodes to a divisor of 3'),
    (router.SigmoidRouter, dict(num_nodes=4, k=2),
     'k is 2, but 1 of 4 nodes have 1 of the 4 experts; set a smaller k, or more max_nodes'),
    (router.ExpertChoiceRouter, dict(eval_capacity_factor=None),
     'eval_capacity_factor is None, with which every expert would choose every token'),
    (router.ExpertChoiceRouter, dict(max_choices=5), 'max_choices is 5 of 4 experts; set it '
     'from 1 to 4'),
])
def test_bad_params_raise_at_construction(family, bad, message):
  with pytest.raises(ValueError, match=re.escape(message)) as error:
    layers.make(family.Params().Set(**dict(model_dim=_M, num_experts=_E) | bad))
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('cls', [router.Router, router.LearnedRouter])
def test_what_routes_nothing_cannot_be_made(cls):
  with pytest.raises(TypeError, match=f'abstract class {cls.__name__} .*_Route'):
    cls.Params().Set(name='router', model_dim=4, num_experts=4).Instantiate()
