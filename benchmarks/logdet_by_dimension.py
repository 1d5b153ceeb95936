"""Milliseconds of a training step with the exact log-determinant and with an estimate.

The flow has 8 blocks with two hidden layers of 64. The program prints a Markdown table with the
time for each dimension and batch size. The default log-determinant was chosen from this table.

    python -m benchmarks.logdet_by_dimension
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

import torch
from jsonargparse import auto_cli

from pyro_resflow import residual_flow
from pyro_resflow.logdet import Exact, Krylov


def step_of(dimension: int, batch: int, logdet: Exact | Krylov) -> Callable[[], None]:
    """A training step on random vectors."""
    flow = residual_flow(dimension, 8, [64, 64], fast="density", logdet=logdet)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3)
    x = torch.randn(batch, dimension)

    def step() -> None:
        z, ladj = flow.inverse_and_ladj(x)
        optimizer.zero_grad()
        (0.5 * z.square().sum(-1) + ladj).mean().backward()
        optimizer.step()

    return step


def milliseconds(step: Callable[[], None], repeats: int) -> float:
    """The median time of a step, without the first two."""
    times = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return 1e3 * median(times[2:])


def main(
    dimensions: Sequence[int] = (2, 4, 8, 12, 16, 32),
    batches: Sequence[int] = (256, 4096),
    repeats: int = 5,
) -> None:
    """Print the table.

    Args:
        dimensions: dimensions of the vectors.
        batches: batch sizes.
        repeats: timed steps for each.
    """
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, threads {torch.get_num_threads()}\n")
    print(f"| dimensions | {' | '.join(map(str, dimensions))} |")
    print(f"| --- |{' ---: |' * len(dimensions)}")
    for batch in batches:
        for logdet in (Exact(), Krylov()):
            times = [milliseconds(step_of(d, batch, logdet), repeats) for d in dimensions]
            name = f"batch {batch}, `{type(logdet).__name__}()`"
            print(f"| {name} | {' | '.join(f'{t:.0f}' for t in times)} |", flush=True)


if __name__ == "__main__":
    auto_cli(main)
