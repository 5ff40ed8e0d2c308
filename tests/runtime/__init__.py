"""Tests of gshard_tf.runtime."""
