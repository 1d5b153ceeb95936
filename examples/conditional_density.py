"""Conditional density estimation: y given x, on one branch with wide noise or two with narrow.

The density of y given x is a mixture of two normals. As x goes from -3 to 3, their means move
apart, their widths shrink and their weights change. SVI fits a conditional residual flow to pairs
(x, y), and normal regression whose mean and width depend on x: the same noise through a
conditional affine map alone. The figures printed are measured on held-out pairs and compared with
the true density.

    python -m examples.conditional_density
    python -m examples.conditional_density --steps 300 --width 16
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from matplotlib.axes import Axes
from pyro import poutine
from pyro.optim import LambdaLR
from torch import Tensor

from examples.parsing import command_line
from examples.plotting import save_figure
from examples.training import empty_guide, train
from pyro_resflow import conditional_residual_flow
from pyro_resflow.logdet import Exact
from pyro_resflow.nn import SpectralNorm
from pyro_resflow.transforms import (
    ActNorm,
    ConditionalAffine,
    ConditionalCompose,
    ConditionalInverse,
)

INPUTS = dist.Uniform(-3.0, 3.0)
Conditional = dist.ConditionalTransformedDistribution
Density = Callable[[Tensor], dist.TorchDistribution]


def truth(x: Tensor) -> dist.TorchDistribution:
    """Return the true density of y at each x.

    Args:
        x: Inputs, shape ``(*batch, 1)``.

    Returns:
        A distribution of batch shape ``batch`` and event shape ``(1,)``.
    """
    open_ = torch.sigmoid(2 * x)
    means = torch.sin(1.5 * x) + 1.5 * open_ * torch.tensor([-1.0, 1.0])
    stds = (0.6 - 0.45 * open_).expand_as(means)
    branches = dist.Categorical(logits=torch.cat([torch.zeros_like(x), 0.5 * x], dim=-1))
    normals = dist.Normal(means[..., None], stds[..., None]).to_event(1)
    return dist.MixtureSameFamily(branches, normals)


def draw_pairs(n: int) -> tuple[Tensor, Tensor]:
    """Draw n inputs and outputs, each of shape ``(n, 1)``."""
    x = INPUTS.sample((n, 1))
    return x, truth(x).sample()


def over_noise(transform: dist.ConditionalTransformModule) -> Conditional:
    """Return standard normal noise in one dimension, pushed through a conditional transform."""
    base = dist.Normal(torch.zeros(1), torch.ones(1)).to_event(1)
    return dist.ConditionalTransformedDistribution(base, [transform])


def residual_flow(blocks: int, width: int) -> Conditional:
    """Build a conditional residual flow whose density takes one pass, with the exact log-det."""
    return over_noise(
        conditional_residual_flow(
            1,
            1,
            blocks,
            [width, width],
            fast="density",
            logdet=Exact(),
            norm=SpectralNorm(0.995, tolerance=1e-3),
        )
    )


def normal_regression() -> Conditional:
    """Build a normal distribution whose mean and width are networks of x."""
    return over_noise(
        ConditionalInverse(ConditionalCompose([ActNorm(1), ConditionalAffine(1, 1, (64, 64))]))
    )


def fit(
    conditional: Conditional,
    draw: Callable[[int], tuple[Tensor, Tensor]],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
) -> None:
    """Maximise the mean of log q(y | x) over pairs, by SVI with an empty guide.

    Args:
        conditional: The model q, with one conditional transform.
        draw: Draws n pairs (x, y) of shapes ``(n, context_dim)`` and ``(n, input_dim)``.
        steps: Training steps.
        batch_size: Pairs at each step.
        learning_rate: Largest learning rate of Adam; it rises for a fifth of the steps.
    """

    @poutine.scale(scale=1 / batch_size)
    def model(x: Tensor, y: Tensor) -> None:
        pyro.module("transform", conditional.transforms[0])
        with pyro.plate("pairs", len(x)):
            pyro.sample("y", conditional.condition(x), obs=y)

    def rise_and_fall(step: int) -> float:
        """Return the factor of the learning rate: at the full rate early steps may diverge."""
        return min(5 * (step + 1), 1.25 * (steps - step)) / steps

    pyro.clear_param_store()
    optimizer = LambdaLR(
        {
            "optimizer": torch.optim.Adam,
            "optim_args": {"lr": learning_rate},
            "lr_lambda": rise_and_fall,
        }
    )
    batches = (draw(batch_size) for _ in range(steps))
    train(model, empty_guide, optimizer, batches, steps=steps)


@torch.no_grad()
def held_out(conditional: Conditional, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nats of each held-out pair under q, and the excess over the true density."""
    nats = -conditional.condition(x).log_prob(y)
    return nats, nats + truth(x).log_prob(y)


def with_error(values: Tensor) -> str:
    """Format the mean and its standard error."""
    return f"{values.mean():.4f} +- {values.std() / len(values) ** 0.5:.4f}"


@torch.no_grad()
def draw_densities(axes: dict[str, Axes], densities: dict[str, Density]) -> None:
    """Draw the density of y at each x, one square for each density."""
    x, y = torch.linspace(-3, 3, 200), torch.linspace(-4, 4, 200)
    context, value = x.reshape(1, -1, 1), y.reshape(-1, 1, 1).expand(-1, 200, 1)
    for name, density in densities.items():
        height = density(context).log_prob(value).exp()
        axes[name].pcolormesh(x.numpy(), y.numpy(), height.numpy(), vmax=1.0)
        axes[name].set(title=name, xlabel="x", ylabel="y")


@torch.no_grad()
def draw_slices(axes: Sequence[Axes], densities: dict[str, Density]) -> None:
    """Draw the densities of y at three values of x."""
    y = torch.linspace(-4, 4, 400)[:, None]
    for axis, x in zip(axes, (-2.0, 0.0, 2.0), strict=True):
        for name, density in densities.items():
            height = density(torch.tensor([x])).log_prob(y).exp()
            axis.plot(y[:, 0].numpy(), height.numpy(), label=name)
        axis.set(title=f"x = {x:g}", xlabel="y")
    axes[2].legend(loc="upper left")


def main(
    steps: int = 1000,
    blocks: int = 6,
    width: int = 32,
    batch_size: int = 256,
    learning_rate: float = 1e-2,
    points: int = 20000,
    seed: int = 0,
    folder: Path = Path("runs/conditional_density"),
) -> None:
    """Fit both models, print their held-out nats beside the truth's, and draw the densities.

    Args:
        steps: Training steps of each.
        blocks: Conditional residual blocks.
        width: Size of both hidden layers of a block.
        batch_size: Fresh pairs drawn at each step.
        learning_rate: Largest learning rate of Adam; it rises for a fifth of the steps.
        points: Held-out pairs.
        seed: Random seed.
        folder: Folder for the figure.
    """
    pyro.set_rng_seed(seed)
    models = {
        "residual flow": residual_flow(blocks, width),
        "normal regression": normal_regression(),
    }
    for conditional in models.values():
        fit(
            conditional,
            draw_pairs,
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
        )
    x, y = draw_pairs(points)
    print(f"truth: {with_error(-truth(x).log_prob(y))} nats per held-out pair")
    for name, conditional in models.items():
        nats, excess = held_out(conditional, x, y)
        print(f"{name}: {with_error(nats)} nats, {with_error(excess)} above the truth")
    draw(models, folder / "conditional_density.png")


def draw(models: dict[str, Conditional], path: Path) -> None:
    """Draw the truth and the models as images over (x, y), and as curves at three x."""
    densities = {"truth": truth, **{name: q.condition for name, q in models.items()}}
    figure, axes = plt.subplots(2, 3, figsize=(12, 7), layout="constrained")
    draw_densities(dict(zip(densities, axes[0], strict=True)), densities)
    draw_slices(axes[1], densities)
    save_figure(figure, path)


if __name__ == "__main__":
    command_line(main)
