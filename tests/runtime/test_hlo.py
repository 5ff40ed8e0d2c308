"""Reading HLO text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gshard_tf.runtime import hlo

_TEXT = '''HloModule jit_f, is_scheduled=true, num_partitions=8, entry_computation_layout={()->()}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  ROOT %sum = f32[] add(%x, %x)
}

%body (arg: (s32[], f32[4])) -> (s32[], f32[4]) {
  %arg = (s32[], f32[4]{0}) parameter(0)
  %value = f32[4]{0:T(256)} get-tuple-element(%arg), index=1
  ROOT %again = (s32[], f32[4]{0}) tuple(%value, %value)
}

%condition (arg: (s32[], f32[4])) -> pred[] {
  %all = (s32[], f32[4]{0}) parameter(0)
  ROOT %go = pred[] constant(true)
}

ENTRY %main.7 (p: f32[4]) -> f32[] {
  %p = f32[4]{0} parameter(0), sharding={devices=[2,4]<=[4,2]T(1,0)}, metadata={op_name="state[\\'theta\\'][\\'a.w\\']"}
  %constant = f32[2,2]{1,0} constant({ { 1, 2 }, { 3, 4 } })
  %ar = (bf16[8,2]{1,0:T(8,128)(2,1)}, /*index=1*/pred[3]{0}) all-reduce(%p, %p), replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %loop = (s32[], f32[4]{0}) while(%ar), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
}
'''


def test_reads_instructions():
  module = hlo.parse(_TEXT)
  assert (module.entry, module.partitions) == ('main.7', 8)
  entry = module.computations['main.7']
  assert list(entry) == ['p', 'constant', 'ar', 'loop']
  reduce = entry['ar']
  assert (reduce.opcode, reduce.operands) == ('all-reduce', ('p', 'p'))
  assert list(map(str, reduce.shapes)) == ['bf16[8,2]', 'pred[3]']
  assert reduce.bytes == 8 * 2 * 2 + 3
  assert entry['p'].op_name == "state['theta']['a.w']"
  assert entry['p'].attribute('sharding') == '{devices=[2,4]<=[4,2]T(1,0)}'
  assert reduce.attribute('replica_groups') == '{{0,1},{2,3}}'
  assert reduce.attribute('to_apply') == '%add'
  assert reduce.attribute('dimensions') == ''
  assert module.computations['body']['value'].integers('index') == (1,)
  assert [i.name for i in module.computations['body'].values() if i.is_root] == ['again']


def test_counts_the_runs_of_a_loop():
  assert hlo.parse(_TEXT).runs() == {'add': 0, 'body': 5, 'condition': 5, 'main.7': 1}


def test_a_loop_of_unknown_length_counts_once():
  assert hlo.parse(_TEXT.replace('known_trip_count', 'other')).runs()['body'] == 1


@pytest.mark.parametrize('dtype, size', [
    (jnp.float32, 4), (jnp.bfloat16, 2), (jnp.bool_, 1), (jnp.uint8, 1), (jnp.int32, 4),
    (jnp.float8_e4m3fn, 1), (jnp.complex64, 8)])
def test_bytes_of_types(dtype, size):
  text = jax.jit(lambda x: jnp.flip(x)).lower(jax.ShapeDtypeStruct((3, 5), dtype)).compile().as_text()
  module = hlo.parse(text)
  parameter = next(i for i in module.computations[module.entry].values() if i.opcode == 'parameter')
  assert parameter.bytes == 15 * size


def test_reads_all_that_xla_writes():
  """No instruction of a real program is lost, and each operand is there."""
  def f(x):
    y = jax.lax.scan(lambda c, _: (jnp.tanh(c @ c), c.sum()), x, None, length=3)
    return jax.lax.cond(y[1][0] > 0, jnp.sort, jnp.cumsum, y[0].ravel())
  text = jax.jit(f).lower(jax.ShapeDtypeStruct((4, 4), np.float32)).compile().as_text()
  module = hlo.parse(text)
  assert sum(map(len, module.computations.values())) == text.count(' = ')
  for instructions in module.computations.values():
    for instruction in instructions.values():
      assert set(instruction.operands) <= set(instructions)
      assert instruction.shapes or instruction.opcode == 'tuple'
