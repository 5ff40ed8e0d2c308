"""Eight virtual CPU devices for every test; set before JAX's backends start."""

import os

os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'

import jax  # pylint: disable=wrong-import-position

jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)
