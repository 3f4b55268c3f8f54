"""Benchmarks of training speed next to what people use today; `tools/benchmark.py` runs them."""
