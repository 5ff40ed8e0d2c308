"""Tests of the registered models."""
