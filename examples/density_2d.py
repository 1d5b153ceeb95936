"""Density estimation in the plane: checkerboard, two moons, rings and pinwheel.

For each data set, a residual flow is fitted to fresh draws by SVI. What is printed is measured on
points that it has not seen; the figure shows data, samples and density side by side.

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
from jsonargparse import auto_cli
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import ClippedAdam
from torch import Tensor
from tqdm import tqdm

from pyro_resflow import residual_flow
from pyro_resflow.logdet import Exact
from pyro_resflow.nn import SpectralNorm


def checkerboard(n: int) -> Tensor:
    """Uniform on 8 of the 16 squares of a board of side 8, so its entropy is log 32: 5 bits."""
    column = torch.randint(4, (n,))
    row = 2 * torch.randint(2, (n,)) + column % 2
    return 2 * (torch.stack([column, row], dim=-1) + torch.rand(n, 2)) - 4


def two_moons(n: int) -> Tensor:
    """Two half circles of radius 2, each reaching into the other, with normal noise."""
    angle = math.pi * torch.rand(n)
    upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], dim=-1)
    side = 2.0 * torch.randint(2, (n, 1)) - 1
    return 2 * side * upper + 0.15 * torch.randn(n, 2)


def rings(n: int) -> Tensor:
    """Four concentric circles of radius 1 to 4, equally likely, with normal noise."""
    radius = 1 + torch.randint(4, (n,)) + 0.1 * torch.randn(n)
    angle = 2 * math.pi * torch.rand(n)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)


def pinwheel(n: int) -> Tensor:
    """Five normal arms, bent around the centre the more the further out they are."""
    radius, width = 1 + 0.3 * torch.randn(n), 0.1 * torch.randn(n)
    angle = 2 * math.pi * torch.randint(5, (n,)) / 5 + 0.25 * radius.exp()
    x = radius * angle.cos() - width * angle.sin()
    y = radius * angle.sin() + width * angle.cos()
    return 2 * torch.stack([x, y], dim=-1)


Name = Literal["checkerboard", "two_moons", "rings", "pinwheel"]
DATA: dict[str, Callable[[int], Tensor]] = {
    "checkerboard": checkerboard,
    "two_moons": two_moons,
    "rings": rings,
    "pinwheel": pinwheel,
}


def build(blocks: int, hidden_dims: Sequence[int]) -> dist.TransformedDistribution:
    """A residual flow on normal noise whose density takes one pass.

    In two dimensions the exact log-determinant costs no more than an estimate.
    """
    norm = SpectralNorm(0.995)
    flow = residual_flow(
        2, blocks, hidden_dims, fast="density", logdet=Exact(), norm=norm
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
    """Maximise the likelihood of fresh draws, in Pyro's own way: SVI without a guide."""

    @poutine.scale(scale=1 / batch_size)
    def model(data: Tensor) -> None:
        pyro.module("flow", density.transforms[0])
        with pyro.plate("data", len(data)):
            pyro.sample("x", density, obs=data)

    def guide(data: Tensor) -> None:
        """Nothing is latent."""

    pyro.clear_param_store()
    optimizer = ClippedAdam({"lr": learning_rate, "lrd": 0.02 ** (1 / steps)})
    svi = SVI(model, guide, optimizer, Trace_ELBO())
    progress = tqdm(range(steps), desc=draw.__name__)
    for _ in progress:
        loss = svi.step(draw(batch_size))
        progress.set_postfix(nats=f"{loss:.3f}", refresh=False)


@torch.no_grad()
def held_out(density: dist.TransformedDistribution, data: Tensor) -> tuple[float, float]:
    """Nats per point, and their standard error."""
    nats = -density.log_prob(data)
    return nats.mean().item(), nats.std().item() / len(data) ** 0.5


@torch.no_grad()
def draw_row(axes: Sequence[plt.Axes], data: Tensor, density: dist.Distribution) -> None:
    """Data, samples and density in three squares of the same extent."""
    limit = 1.15 * data.abs().max().item()
    points = torch.linspace(-limit, limit, 200)
    grid = torch.cartesian_prod(points, points)
    pictures = {
        "data": None,
        "samples": None
    }
