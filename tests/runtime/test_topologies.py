"""Slices of TPUs by name, and what moving bytes over them takes."""

from jax.experimental import topologies as jax_topologies
import pytest

from gshard_tf.runtime import aot
from gshard_tf.runtime import topologies


@pytest.mark.parametrize('topology', topologies.listing(), ids=lambda t: t.name)
def test_the_compiler_knows_every_listed_slice_and_counts_its_cores_alike(topology):
  aot.prepare()
  devices = jax_topologies.get_topology_desc(topology.name, platform='tpu').devices
  assert len(devices) == topology.cores
  assert topologies.find(topology.name) == topology
  row = topologies.row(topology)
  assert row['cores'] == topology.cores and row['hbm_limit'] > 2**30


def test_the_paper_has_2048_cores_of_61_teraflops():
  pod = topologies.find('v3:32x32')
  assert pod.cores == 2048
  assert pod.generation.flops == 61.5e12
  assert pod.generation.hbm_limit / 2**30 == pytest.approx(15.48)


@pytest.mark.parametrize('name, nearest', [
    ('v3:32*32', 'v3:32x32'), ('v3', 'v3:'), ('v7x:2x2x1', 'tpu7x:'), ('v5:2x2x1', 'v5p:'),
    ('nonsense', 'v3:32x32'), ('v3:0x2', 'v3:'), ('', 'v3:32x32')])
def test_an_unknown_name_gets_the_nearest(name, nearest):
  with pytest.raises(topologies.UnknownTopologyError, match=f'did you mean {nearest}') as error:
    topologies.find(name)
  assert '\n' not in str(error.value)


def test_all_to_all_grows_with_the_square_root_of_the_cores():
  # 2006.16668, section 4.3. Of slices whose ends are not joined.
  times = [topologies.find(f'v3:{n}x{n}').all_to_all_seconds(1e6) for n in (4, 8, 16)]
  assert times[1] / times[0] == pytest.approx(2.) and times[2] / times[1] == pytest.approx(2.)
  # On the pod, whose ends are joined, twice the links are cut.
  assert topologies.find('v3:32x32').all_to_all_seconds(1e6) == pytest.approx(times[2])


def test_all_to_all_of_four_chips_by_hand():
  # 8 cores send 8 MB each, half of which is for the other half of the cores: 16 MB
  # each way over the two links in the middle.
  square = topologies.find('v3:2x2')
  assert square.all_to_all_seconds(8e6) == pytest.approx(16e6 / (2 * 82e9))


def test_the_sum_of_an_array_hardly_depends_on_the_cores():
  small, large = (topologies.find(f'v3:{n}').all_reduce_seconds(1e9) for n in ('4x4', '16x16'))
  assert small < large < 1.1 * small
  assert topologies.find('v5e:1x1').all_reduce_seconds(1e9) == 0.
  assert topologies.find('v5e:1x1').all_to_all_seconds(1e9) == 0.
  # The two cores of a chip need no link.
  assert topologies.find('v3:2x2').ring_seconds(1e9, 2) == 0.
  assert topologies.find('v3:2x2').ring_seconds(1e9, 4) > 0.
