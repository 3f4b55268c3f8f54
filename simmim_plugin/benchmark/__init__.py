"""Benchmarks of training speed beside what people use today; `tools/benchmark.py` runs them."""
