"""Models trained on public data."""

from lingvo import model_registry

from gshard_tf.params import sharding
from gshard_tf.params import translation


@model_registry.RegisterSingleTaskModel
class Demo(translation.Translation):
  """24 languages into English on a laptop, from the sample in `data/`.

  make train
  """
  ROWS, SOURCE_LENGTH, TARGET_LENGTH, DECODE_ROWS = 32, 64, 40, 128
  SOURCE_VOCAB, TARGET_VOCAB = 4000, 2000
  ENCODER_LAYERS = DECODER_LAYERS = 2
  MODEL_DIM, HIDDEN_DIM, NUM_HEADS, HEAD_DIM = 192, 512, 6, 32
  NUM_EXPERTS = NUM_GROUPS = 8
  DROPOUT = .15
  LEARNING_RATE, WARMUP_STEPS = 1.3, 300
  MAX_STEPS, SAVE_EVERY = 750, 150
  SHARDING = sharding.SPLIT_VOCABULARY


@model_registry.RegisterSingleTaskModel
class DemoDense(Demo):
  """The dense twin of Demo, with as many floating-point operations a token.

  A token visits two experts, so the dense layer in their place is twice as wide.

  make train MODEL=model_registry.catalog.DemoDense LOGDIR=logdir-dense
  """

  def SparseFeedForward(self):
    return self.DenseFeedForward().Set(hidden_dim=2 * self.HIDDEN_DIM)
