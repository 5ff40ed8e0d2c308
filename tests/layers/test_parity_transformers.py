"""Routers and sparse layers against those of Hugging Face transformers, weights copied in.

transformers 4.57 is the last release whose NLLB-MoE layer sends tokens to the
experts that its router chose; 5.0 to 5.23 send first choices to expert 1 and
second choices to expert 0.

Dimensions: G groups, S tokens in a group, E experts, C capacity, M model, H
hidden.
"""

import os

os.environ['USE_TF'] = '0'  # transformers would try TensorFlow's Keras

import numpy as np
import pytest
import tensorflow as tf
import torch
from transformers.models.nllb_moe import configuration_nllb_moe, modeling_nllb_moe
from transformers.models.switch_transformers import configuration_switch_transformers
from transformers.models.switch_transformers import modeling_switch_transformers

from gshard_tf.layers import moe
from gshard_tf.layers import randomness
from gshard_tf.layers import router
from tests.layers import layer as layers

pytestmark = pytest.mark.slow

_G, _S, _E, _M, _H = 2, 16, 4, 6, 5
# Outputs are sums of at most 6 products of order 1, in two orders of summation.
_ATOL = 1e-5


def numpy(x):
  return x.detach().numpy()


def draw(module, rng):
  """Random weights for all of `module`; biases, which our experts lack, are zero."""
  with torch.no_grad():
    for name, w in module.named_parameters():
      w.copy_(torch.tensor(rng.standard_normal(w.shape) * (not name.endswith('bias'))))
  return module


def by_expert(routing):
  """The gates of a routing as [G, S, E]."""
  mask = np.eye(routing.num_experts)[routing.expert] * (routing.slot.numpy() >= 0)[..., None]
  return np.sum(mask * routing.gate.numpy()[..., None], 2)


def layer_of(router_params, reference, first, second, groups):
  """Our layer with the weights of a reference, whose experts' projections are so named."""
  layer = layers.make(moe.MoE.Params().Set(
      model_dim=_M, hidden_dim=_H, num_experts=_E, num_groups=groups, router=router_params))
  theta = layers.draw(layer, 0)
  theta.router.wg = tf.constant(numpy(reference.router.classifier.weight).T)
  experts = reference.experts.values()
  theta.experts.wi, theta.experts.wo = (
      tf.constant(np.stack([numpy(getattr(e, name).weight).T for e in experts]))
      for name in (first, second))
  return layer, theta


@pytest.fixture(name='rng')
def _rng():
  return np.random.default_rng()


def nllb(rng, **config):
  config = configuration_nllb_moe.NllbMoeConfig(
      d_model=_M, num_experts=_E, router_bias=False, moe_token_dropout=0., **config)
  return draw(modeling_nllb_moe.NllbMoeSparseMLP(config, _H), rng)


def nllb_router(policy='all', before=False, **kwargs):
  return router.Top2Router.Params().Set(
      second_expert=policy, normalize_before_dropping=before, min_capacity=1, **kwargs)


# Normalised first, NLLB-MoE compares gates that are not normalised with its random
# numbers, where Algorithm 1 of GShard compares normalised ones.
@pytest.mark.parametrize('policy, before', [
    ('all', False), ('all', True), ('random', False), ('sampling', False), ('sampling', True)])
@pytest.mark.parametrize('prioritized', [False, True])
def test_nllb_moe_in_training(rng, monkeypatch, policy, before, prioritized):
  tokens = _G * _S
  reference = nllb(rng, second_expert_policy=policy, expert_capacity=7,
                   normalize_router_prob_before_dropping=before,
                   batch_prioritized_routing=prioritized).train()
  # One group of all tokens; 7 * 4 / 32 places for each token make a capacity of 7.
  layer, theta = layer_of(nllb_router(policy, before, prioritized=prioritized, capacity_factor=7 / 8),
                          reference, 'fc1', 'fc2', groups=1)
  x = rng.standard_normal((_G, _S, _M)).astype(np.float32)
  padding = rng.random((_G, _S)) < .2
  shape = (tokens, _E) if policy == 'sampling' else (tokens,)
  uniform = rng.uniform(1e-6, 1., shape).astype(np.float32)
  monkeypatch.setattr(randomness, 'uniform', lambda layer, shape, letters: tf.constant(uniform[None]))
  monkeypatch.setattr(torch, 'rand_like', lambda like: torch.tensor(uniform))
  monkeypatch.setattr(torch.distributions.gumbel.Gumbel, 'rsample',
                      lambda self, shape: -torch.log(-torch.log(torch.tensor(uniform))))

  want, (gates, first) = reference(torch.tensor(x), torch.tensor(padding.reshape(-1)))
  with layers.training():
    got = layer.FProp(theta, tf.constant(x), tf.constant(padding, tf.float32))
    routing = layer.router.FProp(theta.router, tf.reshape(x, [1, tokens, _M]),
                                 tf.constant(1. - padding.reshape(1, -1), tf.float32))
  np.testing.assert_allclose(by_expert(routing)[0], numpy(gates), atol=_ATOL)
  kept = routing.slot.numpy()[0, :, 0] >= 0
  np.testing.assert_array_equal(routing.expert.numpy()[0, kept, 0], numpy(first)[kept])
  np.testing.assert_allclose(got.y, numpy(want), atol=_ATOL)
  assert 0. < float(got.metrics.dropped[0]) < 1.


@pytest.mark.parametrize('fraction', [.25, 1.])
def test_nllb_moe_at_evaluation(rng, fraction):
  reference = nllb(rng, moe_eval_capacity_token_fraction=fraction).eval()
  layer, theta = layer_of(nllb_router(eval_capacity_factor=fraction * _E), reference, 'fc1', 'fc2', groups=1)
  x = rng.standard_normal((_G, _S, _M)).astype(np.float32)
  want, _ = reference(torch.tensor(x), None)
  with layers.evaluation():
    got = layer.FProp(theta, tf.constant(x), tf.zeros([_G, _S]))
  np.testing.assert_allclose(got.y, numpy(want), atol=_ATOL)


def switch(rng, **config):
  config = configuration_switch_transformers.SwitchTransformersConfig(
      d_model=_M, d_ff=_H, num_experts=_E, router_bias=False, dropout_rate=0., **config)
  return draw(modeling_switch_transformers.SwitchTransformersSparseMLP(config), rng)


def test_switch(rng):
  # Each row is a group; 3 * 4 / 16 places for each token make a capacity of 3.
  reference = switch(rng, expert_capacity=3, router_jitter_noise=0.).train()
  params = router.SwitchRouter.Params().Set(input_jitter=0., capacity_factor=.75, min_capacity=1)
  layer, theta = layer_of(params, reference, 'wi', 'wo', groups=_G)
  x = rng.standard_normal((_G, _S, _M)).astype(np.float32)
  want, (logits, _) = reference(torch.tensor(x))
  with layers.training():
    got = layer.FProp(theta, tf.constant(x), tf.zeros([_G, _S]))
  np.testing.assert_allclose(got.y, numpy(want), atol=_ATOL)
  first = torch.argmax(logits, -1)  # that of the router leaves out who was dropped
  balance = modeling_switch_transformers.load_balancing_loss_func(torch.softmax(logits, -1), first)
  z = modeling_switch_transformers.router_z_loss_func(logits)
  assert float(got.metrics.balance_loss[0]) == pytest.approx(balance.item(), rel=1e-5)
  assert float(got.metrics.z_loss[0]) == pytest.approx(z.item(), rel=1e-5)


def test_switch_router_with_jitter(rng, monkeypatch):
  reference = switch(rng, expert_capacity=3, router_jitter_noise=.2).router.train()
  layer = layers.make(router.SwitchRouter.Params().Set(
      model_dim=_M, num_experts=_E, input_jitter=.2, capacity_factor=.75, min_capacity=1))
  theta = layers.draw(layer, 0)
  theta.wg = tf.constant(numpy(reference.classifier.weight).T)
  x = rng.standard_normal((_G, _S, _M)).astype(np.float32)
  uniform = rng.random(x.shape).astype(np.float32)
  monkeypatch.setattr(randomness, 'uniform', lambda layer, shape, letters: tf.constant(uniform))
  monkeypatch.setattr(torch.Tensor, 'uniform_', lambda self, low, high: low + (high - low) * torch.tensor(uniform))
  mask, gate, _ = reference(torch.tensor(x))
  with layers.training():
    routing = layer.FProp(theta, tf.constant(x), tf.ones([_G, _S]))
  np.testing.assert_allclose(by_expert(routing), numpy(mask * gate), atol=_ATOL)
  assert (routing.slot.numpy() < 0).any()
