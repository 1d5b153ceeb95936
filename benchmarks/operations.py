"""Count the operations that one training step dispatches, of small flows and of one of images.

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
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Transform
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.speed.contenders import DEFAULT, PLAIN, Contender
from benchmarks.speed.workloads import Workload
from pyro_resflow import residual_flow

STEPS = 10
"""Steps that are counted; before them come two that measure norms from their start."""


TRAINING_STEPS = 20
"""Steps before samples are drawn and points scored: the flow is then no longer as it starts."""


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

IMAGES = Workload("images of 1x28x28, 64 wide", (1, 28, 28), (64, 64), blocks=8, batch=16)
"""The first workload of ``benchmarks.speed``, whose blocks estimate by ``Krylov()``."""

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


class Density(nn.Module):
    """A normal distribution through transforms of Pyro.

    Args:
        dim: dimensions.
        transforms: from noise to data; their parameters are those of the density.
    """

    def __init__(self, dim: int, transforms: Sequence[Transform]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(t for t in transforms if isinstance(t, nn.Module))
        base = dist.Normal(torch.zeros(dim), torch.ones(dim)).to_event(1)
        self.distribution = dist.TransformedDistribution(base, list(transforms))

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density, ``(N, D)`` to ``(N,)``."""
        return self.distribution.log_prob(x)

    def sample(self, number: int) -> Tensor:
        """Samples, ``(number, D)``, without gradients."""
        return self.distribution.sample((number,))

    def rsample_and_log_prob(self, number: int) -> tuple[Tensor, Tensor]:
        """Samples, ``(number, D)``, and their log-densities, ``(number,)``, with gradients."""
        z = self.distribution.rsample((number,))
        return z, self.distribution.log_prob(z)

    def maintain(self) -> None:
        """Run the library's update after each optimizer step, if it needs one."""


def vector_flow(size: Size) -> Density:
    """A residual flow with the default estimator."""
    torch.manual_seed(0)
    flow = residual_flow(size.dim, size.blocks, size.hidden, fast=size.fast)
    return Density(size.dim, [flow])


def flow_step(size: Size) -> Step:
    """A training step of a residual flow."""
    return density_step(size, vector_flow(size))


def density_step(size: Size, density: Density) -> Step:
    """A training step of a density.

    One that is fast in density maximizes the likelihood of a batch. One that is fast in sampling
    minimizes the divergence from a normal distribution.

    Args:
        size: the batch, and the direction that is trained.
        density: the density.
    """
    target = dist.Normal(torch.zeros(size.dim), 2 * torch.ones(size.dim)).to_event(1)
    optimizer = torch.optim.Adam(density.parameters(), lr=1e-3)
    x = 2 * torch.randn(size.batch, size.dim)

    def loss() -> Tensor:
        if size.fast == "density":
            return -density.log_prob(x).mean()
        z, log_prob = density.rsample_and_log_prob(size.batch)
        return (log_prob - target.log_prob(z)).mean()

    return _training(optimizer, loss, density.maintain)


def runs(size: Size, points: int, density: Density | None = None) -> dict[str, Step]:
    """What the benchmarks time of a density, by name.

    ``training`` is a training step; ``sample`` draws samples and ``log_prob`` scores points
    without gradients. These train the density for some steps before their first run, and leave it
    in evaluation mode.

    Args:
        size: the size of the flow.
        points: samples, or points to score.
        density: the density; default: a residual flow.
    """
    density = density if density is not None else vector_flow(size)
    train = density_step(size, density)
    x = 2 * torch.randn(points, size.dim)

    def ready() -> None:
        if density.training:
            for _ in range(TRAINING_STEPS):
                train()
            density.eval()

    @torch.no_grad()
    def sample() -> None:
        density.sample(points)

    @torch.no_grad()
    def log_prob() -> None:
        density.log_prob(x)

    return {
        "training": train,
        "sample": _after(ready, sample),
        "log_prob": _after(ready, log_prob),
    }


def _after(first: Step, then: Step) -> Step:
    def both() -> None:
        first()
        then()

    return both


def plain_blocks(size: Size) -> nn.ModuleList:
    """The blocks of a plain residual network with the same layers."""
    torch.manual_seed(0)
    return nn.ModuleList(_perceptron(size) for _ in range(size.blocks))


def plain_step(size: Size, blocks: nn.ModuleList | None = None) -> Step:
    """A training step of a plain residual network, without a density.

    Args:
        size: the size.
        blocks: its blocks; default: new ones.
    """
    blocks = blocks if blocks is not None else plain_blocks(size)
    optimizer = torch.optim.Adam(blocks.parameters(), lr=1e-3)
    x = 2 * torch.randn(size.batch, size.dim)

    def loss() -> Tensor:
        y = x
        for block in blocks:
            y = y + block(y)
        return y.square().mean()

    return _training(optimizer, loss)


def image_step() -> Step:
    """A training step of a residual flow of images."""
    torch.manual_seed(0)
    return DEFAULT.training(DEFAULT.build(IMAGES), IMAGES.data())


def plain_image_step() -> Step:
    """A training step of a plain residual network of images, with Adam."""
    torch.manual_seed(0)
    return Contender.training(PLAIN, PLAIN.build(IMAGES), IMAGES.data())


def _perceptron(size: Size) -> nn.Sequential:
    widths = [size.dim, *size.hidden, size.dim]
    layers: list[nn.Module] = []
    for i in range(len(widths) - 1):
        if i:
            layers.append(nn.SiLU())
        layers.append(nn.Linear(widths[i], widths[i + 1]))
    return nn.Sequential(*layers)


def _training(
    optimizer: torch.optim.Optimizer,
    loss: Callable[[], Tensor],
    maintain: Callable[[], None] = lambda: None,
) -> Step:
    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        maintain()

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
        text = ", ".join(f"{name} {value}" for name, value in size._asdict().items())
        _print_row(text, flow_step(size), plain_step(size), arguments.operations)
    text = f"{IMAGES.name}, blocks {IMAGES.blocks}, batch {IMAGES.batch}"
    _print_row(text, image_step(), plain_image_step(), arguments.operations)


def _print_row(text: str, flow: Step, plain: Step, list_operations: bool) -> None:
    counts, of_plain = operations_of(flow), operations_of(plain)
    print(f"{text:<60}{counts.total() / STEPS:>11.0f}{of_plain.total() / STEPS:>7.0f}")
    for name, count in counts.most_common() if list_operations else ():
        print(f"{count / STEPS:>10.1f}  {name}")


if __name__ == "__main__":
    main()
