"""The roofline against counts by hand, and what ought to change it."""

import pytest

from gshard_tf import artifact as artifact_lib
from gshard_tf.runtime import roofline
from gshard_tf.runtime import topologies

CORES, ROWS, LENGTH, SOURCE = 8, 1024, 128, 256
M, H, N, K, E, V = 1024, 8192, 16, 128, 8, 32_000
EXPERT, MODEL = ('expert',), ('model',)
SLICE = topologies.find('v3:2x2')


def weight(path, letters, shape, *axes, layers=()):
  return artifact_lib.Weight(path, shape, 'float32', axes, letters, layers)


DENSE = weight('encoder.blocks_0.feed_forward.wi', 'mh', (M, H), (), MODEL)
QUERY = weight('decoder.blocks_0.cross_attention.wq', 'mnk', (M, N, K), (), MODEL, ())
KEY = weight('decoder.blocks_0.cross_attention.wk', 'mnk', (M, N, K), (), MODEL, ())
OUT = weight('decoder.blocks_0.cross_attention.wo', 'nkm', (N, K, M), MODEL, (), ())
GATE = weight('decoder.blocks_1.feed_forward.router.wg', 'me', (M, E), (), ())
EXPERTS = weight('decoder.blocks_1.feed_forward.wi', 'emh', (E, M, H), EXPERT, (), MODEL)
TABLE = weight('target_embedding.table', 'vm', (V, M), MODEL, ())
NORM = weight('decoder.blocks_1.feed_forward_norm.scale', 'm', (M,), ())
ALL = [DENSE, QUERY, KEY, OUT, GATE, EXPERTS, TABLE, NORM]


def settings(**changes):
  base = dict(slots=dict(encoder=0, decoder=2 * ROWS * LENGTH), activation_bytes=4, remat=False,
              microbatches=1)
  return roofline.Settings(**base | changes)


def parts(weights, mesh=(CORES, 1), slice_=SLICE, rows=ROWS, **changes):
  batch = dict(src=dict(ids=(rows, SOURCE)), tgt=dict(ids=(rows, LENGTH)))
  artifact = artifact_lib.Artifact(
      'model', mesh, ('expert', 'model'), weights, batch, EXPERT, 1, {}, {}, {}, {})
  return roofline.roofline(artifact, slice_, settings(**changes))


def total(found):
  return sum(p.seconds for p in found.values())


@pytest.mark.parametrize('one, part, rows, size', [
    (DENSE, 'dense_feed_forward', ROWS * SOURCE, M * H),  # of the encoder
    (KEY, 'attention', ROWS * SOURCE, M * N * K),  # keys are of the source
    (OUT, 'attention', ROWS * LENGTH, M * N * K),
    (EXPERTS, 'experts', 2 * ROWS * LENGTH, M * H),  # each slot visits one expert
    (GATE, 'gating', ROWS * LENGTH, M * E),
    (TABLE, 'softmax', ROWS * LENGTH, M * V)])
def test_operations_of_a_product_and_its_two_gradients(one, part, rows, size):
  found = parts([one])[part]
  assert found.flops == pytest.approx(3 * 2 * rows * size / CORES)
  assert found.seconds >= found.flops / SLICE.generation.flops


def test_queries_bring_the_scores_along():
  products = 3 * 2 * ROWS * LENGTH * M * N * K / CORES
  scores = 3 * 2 * 2 * ROWS * LENGTH * SOURCE * N * K / CORES
  assert parts([QUERY])['attention'].flops == pytest.approx(products + scores)


@pytest.mark.parametrize('one', [w for w in ALL if w is not TABLE], ids=lambda w: w.path)
def test_a_stack_of_layers_is_as_many_layers(one):
  stacked = one._replace(shape=(3, *one.shape), axes=((), *one.axes), layers=('a', 'b', 'c'))
  assert total(parts([stacked])) == pytest.approx(3 * total(parts([one])))


def test_recomputation_does_the_forward_products_of_blocks_once_more():
  before, after = (parts(ALL, remat=r) for r in (False, True))
  for part in ('attention', 'dense_feed_forward', 'experts'):
    assert after[part].flops == pytest.approx(4 / 3 * before[part].flops)
  assert after['all_to_all'].sent == pytest.approx(6 / 4 * before['all_to_all'].sent)
  assert after['softmax'] == before['softmax'] and after['optimizer'] == before['optimizer']


def test_all_to_all_sends_the_slots_to_the_experts_and_back_twice():
  sent = 2 * ROWS * LENGTH / CORES * M * 4
  found = parts([GATE])['all_to_all']
  assert found.sent == pytest.approx(4 * sent)
  assert found.seconds == pytest.approx(4 * SLICE.all_to_all_seconds(sent))
  assert parts([GATE], activation_bytes=2)['all_to_all'].seconds == pytest.approx(found.seconds / 2)


def test_gradients_of_what_every_core_has_are_summed_and_of_experts_not():
  assert parts([EXPERTS])['all_reduce'].sent == 0
  assert parts([DENSE])['all_reduce'].sent == M * H * 4
  assert parts([DENSE], mesh=(4, 2))['all_reduce'].sent == M * H * 4 / 2


def test_microbatches_read_weights_again_and_add_up_gradients():
  once, often = (parts(ALL, microbatches=n) for n in (1, 8))
  assert often['experts'].flops == once['experts'].flops
  assert often['experts'].bytes > once['experts'].bytes
  assert often['optimizer'].seconds > once['optimizer'].seconds


def test_a_model_axis_divides_the_work_on_weights():
  flat, square = parts(ALL), parts(ALL, mesh=(4, 2))
  for part in ('attention', 'dense_feed_forward', 'experts', 'softmax'):
    assert square[part].flops == pytest.approx(flat[part].flops)  # as many cores
  assert parts([DENSE], mesh=(4, 2))['optimizer'].bytes == parts([DENSE])['optimizer'].bytes / 2
  pod = topologies.find('v3:4x4')
  sums = [parts([NORM], mesh=m, slice_=pod)['all_reduce'].seconds for m in ((32, 1), (8, 4))]
  assert sums[1] > sums[0]  # the branches' results are sums over the second axis


def test_half_of_the_rows_take_half_of_the_time_of_what_works_on_rows():
  whole, half = parts(ALL), parts(ALL, rows=ROWS // 2,
                                  slots=dict(encoder=0, decoder=ROWS * LENGTH))
  for part in ('attention', 'all_to_all', 'elementwise', 'dispatch_and_combine', 'gating'):
    # Reading a weight does not get less.
    assert half[part].seconds == pytest.approx(whole[part].seconds / 2, rel=.1)
  assert half['optimizer'] == whole['optimizer']


def test_a_faster_generation_is_faster():
  assert total(parts(ALL, slice_=topologies.find('v5p:2x2x2'))) < total(parts(ALL)) / 3
