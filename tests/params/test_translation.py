"""The template of a translation model: what its constants must agree on."""

import pytest

from gshard_tf.layers import weights
from model_registry import smoke


@pytest.mark.parametrize('constants, message', [
    (dict(NUM_GROUPS=3), '256 tokens of the source side of a batch do not split into 3 groups; set '
     'num_groups to a divisor of 256'),
    (dict(TARGET_LENGTH=9, NUM_GROUPS=16), '72 tokens of the target side of a batch do not split into 16'),
    (dict(DECODE_ROWS=12), '12 tokens of a decoding step do not split into 8 groups'),
    (dict(NUM_GROUPS=0), 'num_groups is 0; routing needs 1 at least'),
])
def test_tokens_that_do_not_split_into_groups_raise_at_construction(constants, message):
  with pytest.raises(weights.ParamsError, match=message) as error:
    type('Bad', (smoke.Tiny,), constants)().Task()
  assert '\n' not in str(error.value)


def test_a_dense_model_has_no_groups():
  assert type('Dense', (smoke.Tiny,), dict(NUM_EXPERTS=0, NUM_GROUPS=3))().Task()
