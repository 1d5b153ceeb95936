"""Density estimation in the plane: checkerboard, two moons, rings and pinwheel.

For each data set, SVI fits a residual flow to fresh draws. The nats printed are measured on
held-out points; the figure shows data, samples and density side by side.

    python -m examples.density_2d
    python -m examples.density_2d --data '[rings]' --steps 300
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from matplotlib.axes import Axes
from pyro import poutine
from torch import Tensor, nn

from examples.parsing import command_line
from examples.plotting import save_figure
from examples.training import decaying_adam, empty_guide, train
from pyro_resflow import plots, residual_flow
from pyro_resflow.logdet import Exact
from pyro_resflow.nn import LipSwish, SpectralNorm


def checkerboard(n: int) -> Tensor:
    """Draw from the uniform distribution on 8 of 16 squares of side 2: its entropy is 5 bits."""
    column = torch.randint(4, (n,))
    row = 2 * torch.randint(2, (n,)) + column % 2
    return 2 * (torch.stack([column, row], dim=-1) + torch.rand(n, 2)) - 4


def two_moons(n: int) -> Tensor:
    """Draw from two interleaved half circles of radius 2, with normal noise."""
    angle = math.pi * torch.rand(n)
    upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], dim=-1)
    side = 2.0 * torch.randint(2, (n, 1)) - 1
    return 2 * side * upper + 0.15 * torch.randn(n, 2)


def rings(n: int) -> Tensor:
    """Draw from two circles around the origin, of radius 1.5 and 3.5, with normal noise."""
    radius = 1.5 + 2 * torch.randint(2, (n,)) + 0.2 * torch.randn(n)
    angle = 2 * math.pi * torch.rand(n)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)


def pinwheel(n: int) -> Tensor:
    """Draw from five normal arms that wind around the centre."""
    radius, width = 1 + 0.3 * torch.randn(n), 0.1 * torch.randn(n)
    angle = 2 * math.pi * torch.randint(5, (n,)) / 5 + 0.25 * radius.exp()
    x = radius * angle.cos() - width * angle.sin()
    y = radius * angle.sin() + width * angle.cos()
    return 2 * torch.stack([x, y], dim=-1)


DATA: dict[str, Callable[[int], Tensor]] = {
    "checkerboard": checkerboard,
    "two_moons": two_moons,
    "rings": rings,
    "pinwheel": pinwheel,
}
Name = Literal["checkerboard", "two_moons", "rings", "pinwheel"]


def sharp_swish(raw_beta: float = 20.0) -> LipSwish:
    """Build an activation with a sharper bend at the start: small networks learn edges sooner.

    Args:
        raw_beta: Initial value of the activation's parameter; larger is sharper.
    """
    activation = LipSwish()
    nn.init.constant_(activation.raw_beta, raw_beta)
    return activation


def build(blocks: int, width: int) -> dist.TransformedDistribution:
    """Build a residual flow of normal noise whose density takes one pass.

    In two dimensions the exact log-determinant costs no more than an estimate of it.
    """
    flow = residual_flow(
        2,
        blocks,
        [width, width],
        fast="density",
        logdet=Exact(),
        activation=sharp_swish,
        norm=SpectralNorm(0.995, tolerance=1e-3),
    )
    base = dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)
    return dist.TransformedDistribution(base, [flow])


def fit(
    density: dist.TransformedDistribution,
    draw: Callable[[int], Tensor],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
) -> None:
    """Maximise the likelihood of fresh draws by SVI with an empty guide."""

    @poutine.scale(scale=1 / batch_size)
    def model(data: Tensor) -> None:
        pyro.module("flow", density.transforms[0])
        with pyro.plate("data", len(data)):
            pyro.sample("x", density, obs=data)

    pyro.clear_param_store()
    batches = ((draw(batch_size),) for _ in range(steps))
    optimizer = decaying_adam(learning_rate, steps)
    train(model, empty_guide, optimizer, batches, steps=steps, description=draw.__name__)


@torch.no_grad()
def held_out(density: dist.TransformedDistribution, data: Tensor) -> tuple[float, float]:
    """Return the nats per point and their standard error."""
    nats = -density.log_prob(data)
    return nats.mean().item(), nats.std().item() / len(data) ** 0.5


@torch.no_grad()
def draw_row(axes: Sequence[Axes], data: Tensor, density: dist.TransformedDistribution) -> None:
    """Draw data, as many samples, and the density, on squares of one size."""
    limit = 1.1 * data.abs().max().item()
    edges = torch.linspace(-limit, limit, 201)
    for axis, points in zip(axes, (data, density.sample((len(data),))), strict=False):
        axis.hist2d(*points.T.numpy(), bins=edges.numpy())
    plots.density_2d(density, xlim=(-limit, limit), ylim=(-limit, limit), ax=axes[2])


def main(
    data: Sequence[Name] = ("checkerboard", "two_moons", "rings", "pinwheel"),
    steps: int = 750,
    blocks: int = 12,
    width: int = 32,
    batch_size: int = 256,
    learning_rate: float = 2e-2,
    points: int = 20000,
    seed: int = 0,
    folder: Path = Path("runs/density_2d"),
) -> None:
    """Fit a residual flow to each data set, print held-out nats and draw the densities.

    Args:
        data: The data sets.
        steps: Training steps for each.
        blocks: Residual blocks.
        width: Size of both hidden layers of a block.
        batch_size: Fresh points drawn at each step.
        learning_rate: Initial learning rate of Adam; it falls to a twentieth.
        points: Held-out points, and samples, for each data set.
        seed: Random seed.
        folder: Folder for the figure.
    """
    pyro.set_rng_seed(seed)
    figure, axes = plt.subplots(
        len(data), 3, figsize=(9, 3 * len(data)), squeeze=False, layout="constrained"
    )
    for row, name in zip(axes, data, strict=True):
        density = build(blocks, width)
        fit(
            density,
            DATA[name],
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
        )
        unseen = DATA[name](points)
        nats, error = held_out(density, unseen)
        print(f"{name}: {nats:.3f} +- {error:.3f} nats per held-out point")
        if name == "checkerboard":
            bits, error = nats / math.log(2), error / math.log(2)
            print(f"{name}: {bits:.3f} +- {error:.3f} bits; the entropy of the data is 5 bits")
        draw_row(row, unseen, density)
        row[0].set_ylabel(name.replace("_", " "))
    for axis, title in zip(axes[0], ("data", "samples", "density"), strict=True):
        axis.set_title(title)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[], aspect="equal")
    save_figure(figure, folder / "density_2d.png")


if __name__ == "__main__":
    command_line(main)
