"""The paper's ladder: 100 languages into English (2006.16668, table 3).

Layers count encoder and decoder together. One expert and one group of tokens a
core; 16 heads of 128. The BLEU of each docstring is the paper's, and so are the
steps per second, measured on the cores of PAPER_TOPOLOGY.
"""

from lingvo import model_registry

from gshard_tf.params import sharding
from gshard_tf.params import translation

_TOKENS = 2 ** 20  # "1M" of a batch
_LENGTH = 128


class _M4(translation.Translation):
  """What the models of the table share."""
  CORPUS, VOCABULARY = 'corpus/m4', 'corpus/m4'
  SOURCE_VOCAB, TARGET_VOCAB = 64_000, 32_000
  SOURCE_LENGTH = TARGET_LENGTH = _LENGTH
  ROWS = _TOKENS // _LENGTH
  DECODE_ROWS = 2048
  REPEAT, REMAT = True, 'block'


class _L12(_M4):
  ENCODER_LAYERS = DECODER_LAYERS = 6


class _L36(_M4):
  ENCODER_LAYERS = DECODER_LAYERS = 18


@model_registry.RegisterSingleTaskModel
class MoE128E12L(_L12):
  """12.5B weights on 128 cores: BLEU 36.7."""
  PAPER_TOPOLOGY, PAPER_STEPS_PER_SECOND = 'v3:8x8', 2.16
  NUM_EXPERTS = NUM_GROUPS = 128


@model_registry.RegisterSingleTaskModel
class MoE128E36L(_L36):
  """37B weights on 128 cores: BLEU 39.0."""
  PAPER_TOPOLOGY, PAPER_STEPS_PER_SECOND = 'v3:8x8', 0.67
  NUM_EXPERTS = NUM_GROUPS = 128


@model_registry.RegisterSingleTaskModel
class MoE512E12L(_L12):
  """50B weights on 512 cores: BLEU 40.0."""
  PAPER_TOPOLOGY, PAPER_STEPS_PER_SECOND = 'v3:16x16', 3.28
  NUM_EXPERTS = NUM_GROUPS = 512


@model_registry.RegisterSingleTaskModel
class MoE512E36L(_L36):
  """150B weights on 512 cores: BLEU 43.7."""
  PAPER_TOPOLOGY, PAPER_STEPS_PER_SECOND = 'v3:16x16', 1.05
  NUM_EXPERTS = NUM_GROUPS = 512


@model_registry.RegisterSingleTaskModel
class MoE2048E12L(_L12):
  """200B weights on 2048 cores, 4M tokens a step: BLEU 41.3."""
  PAPER_TOPOLOGY, PAPER_STEPS_PER_SECOND = 'v3:32x32', 2.15
  NUM_EXPERTS = NUM_GROUPS = 2048
  ROWS = 4 * _TOKENS // _LENGTH


@model_registry.RegisterSingleTaskModel
class MoE2048E36L(_L36):
  """600B weights on 2048 cores, 4M tokens a step: BLEU 44.3."""
  PAPER_TOPOLOGY, PAPER_STEPS_PER_SECOND = 'v3:32x32', 0.72
  NUM_EXPERTS = NUM_GROUPS = 2048
  ROWS = 4 * _TOKENS // _LENGTH


class _SplitWeights(_M4):
  """Dense weights in four parts: whole, with gradients, they outgrow a core."""
  SHARDING, MODEL_PARTITIONS = sharding.SPLIT_WEIGHTS, 4
  ROWS = 4 * _TOKENS // _LENGTH


@model_registry.RegisterSingleTaskModel
class T96L(_SplitWeights):
  """The dense baseline, 2.3B weights on 2048 cores, 4M tokens a step: BLEU 36.9.

  Its 2.3B weights come out with heads of 64; heads of 128 would make 2.9B.
  """
  PAPER_TOPOLOGY, PAPER_STEPS_PER_SECOND = 'v3:32x32', None  # not in the table
  ENCODER_LAYERS = DECODER_LAYERS = 48
  HEAD_DIM = 64


@model_registry.RegisterSingleTaskModel
class MoE1T(_SplitWeights):
  """MoE(2048E, 60L), 1T weights, which the authors could not train in bfloat16.

  Numerically unstable, says section 4.3; here gating, softmax, loss and
  reductions are in float32 whatever the activations are.
  """
  ENCODER_LAYERS = DECODER_LAYERS = 30
  NUM_EXPERTS = NUM_GROUPS = 2048
  FPROP_DTYPE = 'bfloat16'


@model_registry.RegisterSingleTaskModel
class MoE2T(MoE1T):
  """MoE(2048E, 128L), 2.2T weights: the deepest of the family that fits 2048 cores.

  Found by `tools.aot_report --search=largest` (docs/scaling.md).
  """
  ENCODER_LAYERS = DECODER_LAYERS = 64
