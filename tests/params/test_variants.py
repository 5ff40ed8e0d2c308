"""Models with other constants."""

import pytest

from gshard_tf.params import sharding
from gshard_tf.params import variants
from model_registry import m4
from model_registry import smoke


def test_values_are_of_the_type_of_the_constant():
  model = variants.variant(smoke.Tiny, [
      'HIDDEN_DIM=4_096', 'DROPOUT=1', 'REMAT=block', 'REPEAT=True', 'SHARDING=GSHARD'])
  assert issubclass(model, smoke.Tiny) and model.__name__ == 'Tiny'
  assert model.HIDDEN_DIM == 4096
  assert isinstance(model.DROPOUT, float) and model.DROPOUT == 1.
  assert model.REMAT == 'block' and model.REPEAT is True
  assert model.SHARDING is sharding.GSHARD
  assert model().Task().encoder.blocks[0].feed_forward.hidden_dim == 4096
  assert smoke.Tiny.HIDDEN_DIM == 64
  assert not variants.variant(model, ['REPEAT=false']).REPEAT


def test_without_settings_it_is_the_model_itself():
  assert variants.variant(smoke.Tiny, []) is smoke.Tiny


def test_a_constant_that_is_none_takes_a_number():
  assert variants.variant(m4.T96L, ['PAPER_STEPS_PER_SECOND=.5']).PAPER_STEPS_PER_SECOND == .5


@pytest.mark.parametrize('setting, part', [
    ('REMATT=block', 'Tiny has no constant REMATT; did you mean REMAT?'),
    ('remat=block', 'did you mean REMAT?'),
    ('Q=1', 'Tiny has no constant Q; it has .*HIDDEN_DIM'),
    ('Task=1', 'no constant Task'),
    ('REMAT', 'write NAME=VALUE'),
    ('HIDDEN_DIM=wide', 'HIDDEN_DIM=wide: HIDDEN_DIM is a value of type int'),
    ('HIDDEN_DIM=1.5', 'type int'),
    ('REPEAT=yes', 'REPEAT is one of True, False'),
    ('SHARDING=NONE', 'SHARDING is one of GSHARD, SPLIT_VOCABULARY')])
def test_a_fault_is_one_line_with_the_remedy(setting, part):
  with pytest.raises(variants.VariantError, match=part) as error:
    variants.variant(smoke.Tiny, [setting])
  assert '\n' not in str(error.value)
