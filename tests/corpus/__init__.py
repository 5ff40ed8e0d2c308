"""Tests of gshard_tf.corpus."""
