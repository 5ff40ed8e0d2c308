"""Tests of gshard_tf.decode."""
