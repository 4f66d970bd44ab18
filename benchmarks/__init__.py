"""Benchmarks. `python -m benchmarks` prints every figure as a ratio, `pytest benchmarks` runs pytest-benchmark."""
