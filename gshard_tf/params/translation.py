"""The template of a translation model: constants to Lingvo Params.

A registered model is a class of constants over `Translation`; what the
constants mean is told here, once.
"""

import math

from lingvo.core import base_model_params
from lingvo.core import optimizer
from lingvo.core import schedule
import tensorflow as tf

from gshard_tf.input import generator
from gshard_tf.layers import attention
from gshard_tf.layers import feed_forward
from gshard_tf.layers import moe
from gshard_tf.layers import router
from gshard_tf.layers import transformer
from gshard_tf.models import translation
from gshard_tf.params import sharding


class Translation(base_model_params.SingleTaskModelParams):
  """A Mixture-of-Experts encoder-decoder: every other feed-forward is sparse."""

  # Data: a folder of train.tsv, dev.tsv and test.tsv, and of the vocabularies.
  CORPUS = 'data'
  VOCABULARY = 'data/vocabulary'
  TEMPERATURE = 5.  # of language sampling
  ROWS = 0  # of a global batch
  SOURCE_LENGTH = TARGET_LENGTH = 128  # positions in a row
  DECODE_ROWS = 0  # of a decoding step: sentences times beam

  # Sizes.
  SOURCE_VOCAB = 0
  TARGET_VOCAB = 0
  ENCODER_LAYERS = 0
  DECODER_LAYERS = 0
  MODEL_DIM = 1024
  HIDDEN_DIM = 8192  # of the dense feed-forwards and of each expert
  NUM_HEADS = 16
  HEAD_DIM = 128
  RELATIVE_BUCKETS = 32

  # Sparse layers. Without experts all feed-forwards are dense.
  NUM_EXPERTS = 0
  NUM_GROUPS = 0
  CAPACITY_FACTOR = 2.
  SECOND_EXPERT = 'random'

  # Memory for time; what each costs and saves is in docs/scaling.md.
  REPEAT = False  # layers in a loop: shorter to compile; needs REMAT
  REMAT = 'none'  # or block: computed again for the backward pass
  MICROBATCHES = 1  # parts of a batch, one after another
  FPROP_DTYPE = 'float32'  # of activations; or bfloat16
  MODEL_PARTITIONS = 1  # size of the mesh axis `model` where the mesh is not given

  # Training; the defaults are the paper's (2006.16668, appendix A.2).
  DROPOUT = 0.1
  LABEL_SMOOTHING = 0.1
  LEARNING_RATE = 1.  # times 1/sqrt(step) after the warm-up
  WARMUP_STEPS = 10_000
  MAX_STEPS = 1_000_000
  SAVE_EVERY = 1_000
  SEED = 0
  SHARDING = sharding.GSHARD

  def Train(self):
    return self._Input('train').Set(training=True)

  def Dev(self):
    return self._Input('dev')

  def Test(self):
    return self._Input('test')

  def Task(self):
    self._CheckGroups()
    p = translation.TranslationModel.Params().Set(
        name='translation', random_seed=self.SEED, dropout=self.DROPOUT,
        label_smoothing=self.LABEL_SMOOTHING, sharding_table=self.SHARDING,
        mesh_axes=sharding.MESH_AXES, decode_rows=self.DECODE_ROWS,
        microbatches=self.MICROBATCHES, fprop_dtype=tf.dtypes.as_dtype(self.FPROP_DTYPE),
        model_partitions=self.MODEL_PARTITIONS)
    p.source_embedding.Set(vocab_size=self.SOURCE_VOCAB, model_dim=self.MODEL_DIM)
    p.target_embedding.Set(vocab_size=self.TARGET_VOCAB, model_dim=self.MODEL_DIM)
    for stack, layers, decoder in ((p.encoder, self.ENCODER_LAYERS, False),
                                   (p.decoder, self.DECODER_LAYERS, True)):
      stack.blocks = [self._Block(i % 2 == 1, decoder) for i in range(layers)]
      stack.Set(remat=self.REMAT, period=2 if self.REPEAT else 0)
      stack.norm.model_dim = self.MODEL_DIM
    p.train.Set(
        learning_rate=self.LEARNING_RATE,
        optimizer=optimizer.XLAShardingAdafactor.Params().Set(
            beta2=0.99, clipping_threshold=1.),
        lr_schedule=schedule.LinearRampupSqrtDecay.Params().Set(
            peak=1. / math.sqrt(self.WARMUP_STEPS), warmup_steps=self.WARMUP_STEPS),
        max_steps=self.MAX_STEPS, save_interval_steps=self.SAVE_EVERY)
    return p

  def DenseFeedForward(self):
    """Params of the feed-forward of the blocks 0, 2, 4, ..."""
    return feed_forward.FeedForward.Params().Set(
        model_dim=self.MODEL_DIM, hidden_dim=self.HIDDEN_DIM, dropout=self.DROPOUT)

  def SparseFeedForward(self):
    """Params of the feed-forward of the blocks 1, 3, 5, ..."""
    if not self.NUM_EXPERTS:
      return self.DenseFeedForward()
    return moe.MoE.Params().Set(
        model_dim=self.MODEL_DIM, hidden_dim=self.HIDDEN_DIM, dropout=self.DROPOUT,
        num_experts=self.NUM_EXPERTS, num_groups=self.NUM_GROUPS, router=self.Router())

  def Router(self):
    """Params of the routers of the sparse feed-forwards."""
    return router.Top2Router.Params().Set(
        capacity_factor=self.CAPACITY_FACTOR, second_expert=self.SECOND_EXPERT)

  def _CheckGroups(self):
    """Raises ParamsError where tokens do not split into groups."""
    if not self.NUM_EXPERTS:
      return
    for tokens, of in ((self.ROWS * self.SOURCE_LENGTH, 'the source side of a batch'),
                       (self.ROWS * self.TARGET_LENGTH, 'the target side of a batch'),
                       (self.DECODE_ROWS * self.SOURCE_LENGTH, 'sentences to decode'),
                       (self.DECODE_ROWS, 'a decoding step')):
      moe.check_groups(self.NUM_GROUPS, tokens, f' of {of}')

  def _Block(self, sparse, decoder):
    p = transformer.TransformerBlock.Params().Set(
        dropout=self.DROPOUT,
        feed_forward=self.SparseFeedForward() if sparse else self.DenseFeedForward())
    p.norm.model_dim = self.MODEL_DIM
    heads = attention.MultiHeadAttention.Params().Set(
        model_dim=self.MODEL_DIM, num_heads=self.NUM_HEADS, head_dim=self.HEAD_DIM)
    p.self_attention = heads.Copy().Set(
        causal=decoder, relative_buckets=self.RELATIVE_BUCKETS)
    if decoder:
      p.cross_attention = heads
    return p

  def _Input(self, split):
    return generator.TranslationInput.Params().Set(
        name='input', path=f'{self.CORPUS}/{split}.tsv', training=False,
        source_model=f'{self.VOCABULARY}/source.model',
        target_model=f'{self.VOCABULARY}/target.model',
        temperature=self.TEMPERATURE, batch_size=self.ROWS, seed=self.SEED,
        source_length=self.SOURCE_LENGTH, target_length=self.TARGET_LENGTH)
