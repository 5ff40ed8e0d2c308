"""Tests of gshard_tf.params."""
