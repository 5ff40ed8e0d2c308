"""Tests of gshard_tf; the folders mirror the package."""
