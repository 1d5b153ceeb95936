"""The benchmark for one GPU: ``python -m benchmarks.gpu``, at most four minutes.

It times training steps eagerly and as CUDA graphs, against normflows and a plain network, then
steps of the published CIFAR-10 size, and runs the tests that need a GPU. Every row that does not
fit into the time is left out, and said to be.
"""
