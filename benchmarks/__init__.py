"""Measurements: run them from the root, as in `python -m benchmarks.logdet_variance`."""
