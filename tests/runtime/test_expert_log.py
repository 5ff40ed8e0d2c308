"""What TensorBoard shows of the experts, read back."""

import numpy as np
import pytest
import tensorboardX
from tensorboard.backend.event_processing import event_accumulator

from gshard_tf.runtime import expert_log


@pytest.mark.parametrize('num_experts', [8, 100, 2048])
def test_a_load_read_back(num_experts, tmp_path):
  load = np.random.default_rng(0).random(num_experts)
  load[[0, num_experts // 2]] = 0.
  load[-1] += 1.
  load /= load.sum()
  with tensorboardX.SummaryWriter(str(tmp_path)) as events:
    expert_log.add_load(events, 'experts/encoder.blocks_1/load', load, 7)
  read = event_accumulator.EventAccumulator(str(tmp_path)).Reload()
  scalar = lambda name: read.Scalars(f'experts/encoder.blocks_1/{name}')[0].value
  assert scalar('dead') == 2
  assert scalar('busiest') == pytest.approx(load[-1] * num_experts)
  event, = read.Histograms('experts/encoder.blocks_1/load')
  assert event.step == 7
  begin, bars = 0, zip(event.histogram_value.bucket_limit, event.histogram_value.bucket)
  for end, height in bars:
    assert height == pytest.approx(load[begin:int(end)].sum())
    begin = int(end)
  assert begin == num_experts and len(event.histogram_value.bucket) <= 64


def test_a_picture_has_a_cell_for_each_language_and_expert():
  """Each language uses one expert alone: a picture of two colours, white where none is used."""
  loads = np.eye(4)[[2, 0, 3, 1, 0]]
  loads[4] = 0.
  image = expert_log.draw({'encoder.blocks_1': loads}, ('de', 'fr', 'ja', 'ko', 'zh-Hans'))
  assert image.dtype == np.uint8 and image.shape[2] == 3
  low, high = (np.all(image == colour, -1) for colour in ((68, 1, 84), (253, 231, 36)))  # viridis
  rows, columns = np.nonzero(low | high)
  # The colour bar is at the right of all cells; between them is a white gap.
  width = next(n for n in range(image.shape[1]) if columns.min() + n not in columns)
  cells = lambda mask: mask[rows.min():, columns.min():columns.min() + width]
  height = np.ptp(np.nonzero(cells(low | high))[0]) + 1
  for language in range(4):
    for expert in range(4):
      at = int((language + .5) * height / 4), int((expert + .5) * width / 4)
      assert (cells(high) if loads[language, expert] else cells(low))[at], (language, expert)


def test_panels_of_a_deep_model_are_in_order_and_as_many_as_layers():
  panel = np.full((3, 8), 1 / 8)
  few, many = (expert_log.draw({f'{s}.blocks_{i}': panel for s in ('decoder', 'encoder')
                                for i in range(1, n, 2)}, ('de', 'fr', 'ja')) for n in (4, 24))
  assert few.shape[1] == many.shape[1] and many.shape[0] > 4 * few.shape[0]
  names = ['decoder.blocks_1', 'encoder.blocks_11', 'decoder.blocks_11', 'encoder.blocks_3']
  assert sorted(names, key=expert_log._order) == [
      'encoder.blocks_3', 'encoder.blocks_11', 'decoder.blocks_1', 'decoder.blocks_11']
