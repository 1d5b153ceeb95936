"""The speed benchmark: this package against normflows and torchflows, every figure in one run.

``make bench``, or ``python -m benchmarks.speed --help`` for its options. Every library gets the
same networks with the same weights, the same batch and the same threads, and the libraries take
turns. Each file of :mod:`benchmarks.speed.groups` measures one group of figures.
"""
