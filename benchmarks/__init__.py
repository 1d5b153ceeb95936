"""Measurements: run them from the root of the repository, as in `python -m benchmarks.logdet_variance`."""
