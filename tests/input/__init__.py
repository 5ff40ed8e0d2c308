"""Tests of gshard_tf.input."""
