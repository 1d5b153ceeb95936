"""Measurements. Run them from the repository root: `python -m benchmarks.logdet_variance`."""
