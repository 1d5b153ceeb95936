"""The speed benchmark: compares this package with normflows and torchflows in one run.

``make bench``, or ``python -m benchmarks.speed --help`` for its options. Every library gets the
same networks with the same weights, the same batch and the same threads, and their runs
alternate. Each file of :mod:`benchmarks.speed.groups` measures one group of figures.
"""
