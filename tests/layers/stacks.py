"""Blocks and stacks of a few weights."""

import functools

from gshard_tf.layers import attention
from gshard_tf.layers import feed_forward
from gshard_tf.layers import moe
from gshard_tf.layers import transformer
from tests.layers import layer as layers

MODEL_DIM = 8


def block_params(sparse, dropout=0.):
  ff = moe.MoE.Params().Set(num_experts=2) if sparse else feed_forward.FeedForward.Params()
  p = transformer.TransformerBlock.Params().Set(
      feed_forward=ff.Set(model_dim=MODEL_DIM, hidden_dim=6, dropout=dropout), dropout=dropout)
  p.norm.model_dim = MODEL_DIM
  p.self_attention = attention.MultiHeadAttention.Params().Set(
      model_dim=MODEL_DIM, num_heads=2, head_dim=4, relative_buckets=8)
  return p


def stack_params(*sparse, **kwargs):
  p = transformer.Stack.Params().Set(blocks=[block_params(s, **kwargs) for s in sparse])
  p.norm.model_dim = MODEL_DIM
  return p


@functools.cache
def make_stack(*sparse, **kwargs):
  return layers.make(stack_params(*sparse, **kwargs))
