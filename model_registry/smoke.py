"""Tiny models, for tests and first looks."""

from lingvo import model_registry

from gshard_tf.params import sharding
from gshard_tf.params import translation


@model_registry.RegisterSingleTaskModel
class Tiny(translation.Translation):
  """Every part of the flagship at the least size, on the sample in `data/`.

  python -m gshard_tf.trainer --model=model_registry.smoke.Tiny --logdir=/tmp/tiny --max_steps=20
  """
  ROWS, SOURCE_LENGTH, TARGET_LENGTH, DECODE_ROWS = 8, 32, 32, 16
  SOURCE_VOCAB, TARGET_VOCAB = 4000, 2000
  ENCODER_LAYERS = DECODER_LAYERS = 2
  MODEL_DIM, HIDDEN_DIM, NUM_HEADS, HEAD_DIM = 32, 64, 4, 8
  NUM_EXPERTS = NUM_GROUPS = 8
  LEARNING_RATE, WARMUP_STEPS = 1., 100
  MAX_STEPS, SAVE_EVERY = 20, 10
  SHARDING = sharding.SPLIT_VOCABULARY


@model_registry.RegisterSingleTaskModel
class TinyDeterministic(Tiny):
  """Tiny without dropout and with every second expert kept."""
  DROPOUT = 0.
  SECOND_EXPERT = 'all'
