"""Count the operations that one training step of a small flow dispatches.

Run: ``python -m benchmarks.operations``. With ``--operations`` it lists how often each ran.

In a few dimensions and for small batches, the time of a step is that of calling its operations.
Their number does not depend on the machine or its load. The table has the flow beside a plain
residual network of the same layers. Both count the forward pass, the backward pass and Adam; views
count too. The numbers are means over steps, because a stochastic log-determinant takes a random
number of products.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_resflow import residual_flow

STEPS = 10
"""Steps that are counted; before them come two that measure norms from their start."""


class Size(NamedTuple):
    """The size of a flow and of its batch.

    Attributes:
        dim: dimensions.
        blocks: residual blocks.
        hidden: widths of the hidden layers of each.
        batch: samples of a step.
        fast: the direction without iteration, which is trained.
    """

    dim: int
    blocks: int
    hidden: tuple[int, ...]
    batch: int
    fast: str


SIZES = (
    Size(2, 4, (64, 64), 256, "density"),
    Size(10, 5, (64, 64), 32, "sampling"),
    Size(30, 5, (32,), 32, "density"),
    Size(64, 8, (64, 64), 256, "density"),
)

Step = Callable[[], None]


class OperationCounter(TorchDispatchMode):
    """Counts every operation that torch dispatches.

    Attributes:
        counts: how often each ran, by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def flow_step(size: Size) -> Step:
    """A training step of a residual flow with the default estimator.

    A flow that is fast in density maximizes the likelihood of a batch. One that is fast in
    sampling minimizes the divergence from a normal distribution.
    """
    torch.manual_seed(0)
    flow = residual_flow(size.dim, size.blocks, size.hidden, fast=size.fast)
    base = dist.Normal(torch.zeros(size.dim), 1.0).to_event(1)
    target = dist.Normal(torch.zeros(size.dim), 2.0).to_event(1)
    distribution = dist.TransformedDistribution(base, [flow])
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3)
    x = 2 * torch.randn(size.batch, size.dim)

    def loss() -> Tensor:
        if size.fast == "density":
            return -distribution.log_prob(x).mean()
        z = distribution.rsample((size.batch,))
        return (distribution.log_prob(z) - target.log_prob(z)).mean()

    return _training(optimizer, loss)


def plain_step(size: Size) -> Step:
    """A training step of a plain residual network with the same layers, without a density."""
    torch.manual_seed(0)
    blocks = nn.ModuleList(_perceptron(size) for _ in range(size.blocks))
    optimizer = torch.optim.Adam(blocks.parameters(), lr=1e-3)
    x = 2 * torch.randn(size.batch, size.dim)

    def loss() -> Tensor:
        y = x
        for block in blocks:
            y = y + block(y)
        return y.square().mean()

    return _training(optimizer, loss)


def _perceptron(size: Size) -> nn.Sequential:
    widths = [size.dim, *size.hidden, size.dim]
    layers: list[nn.Module] = []
    for i in range(len(widths) - 1):
        if i:
            layers.append(nn.SiLU())
        layers.append(nn.Linear(widths[i], widths[i + 1]))
    return nn.Sequential(*layers)


def _training(optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> Step:
    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def operations_of(step: Step, steps: int = STEPS) -> Counter[str]:
    """How often each operation ran in several steps.

    Args:
        step: the step. It is first taken twice without being counted.
        steps: number of counted steps.
    """
    for _ in range(2):
        step()
    with OperationCounter() as counter:
        for _ in range(steps):
            step()
    return counter.counts


def main() -> None:
    """Print the numbers of all sizes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--operations", action="store_true", help="list the operations of a flow")
    arguments: Any = parser.parse_args()
    print(f"{'flow':<60}{'operations':>11}{'plain':>7}")
    for size in SIZES:
        counts = operations_of(flow_step(size))
        plain = operations_of(plain_step(size))
        text = ", ".join(f"{name} {value}" for name, value in size._asdict().items())
        print(f"{text:<60}{counts.total() / STEPS:>11.0f}{plain.total() / STEPS:>7.0f}")
        for name, count in counts.most_common() if arguments.operations else ():
            print(f"{count / STEPS:>10.1f}  {name}")


if __name__ == "__main__":
    main()
