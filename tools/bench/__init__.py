"""Benchmarks, one module each; `__main__` is the command line."""
