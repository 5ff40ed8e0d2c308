"""Tests of the translation model."""
