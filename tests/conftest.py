"""Eight virtual CPU devices for every test; set before JAX's backends start."""

import os

os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'

import jax  # pylint: disable=wrong-import-position

jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)

import pytest  # pylint: disable=wrong-import-position


@pytest.fixture(name='use_partitioner')
def _use_partitioner():
  """Sets the partitioner for one test."""
  from gshard_tf.runtime import partitioner  # pylint: disable=import-outside-toplevel
  before = partitioner.in_use()
  yield partitioner.use
  partitioner.use(before)


def pytest_collection_modifyitems(items):
  """Slow modules first, so that no process is left with one at the end."""
  items.sort(key=lambda item: item.get_closest_marker('slow') is None)
