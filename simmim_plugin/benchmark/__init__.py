"""Benchmarks of training speed against other packages; `tools/benchmark.py` runs them."""
