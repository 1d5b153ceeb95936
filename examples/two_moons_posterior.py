"""Simulation-based inference: the posterior of the two moons task by a conditional flow.

The task is a common benchmark (Greenberg et al., 2019; Lueckmann et al., 2021): a uniform prior on
[-1, 1]^2, and a simulator whose observations lie on a thin crescent. The posterior is two
crescents. A conditional residual flow q(theta | x) is fitted to simulated pairs by maximum
likelihood (neural posterior estimation). At new observations, it is then compared with exact
draws of the posterior: by C2ST, the accuracy of a classifier between the two (0.5 if they are
alike), and by the Kullback-Leibler divergence KL(p | q).

    python -m examples.two_moons_posterior
    python -m examples.two_moons_posterior --simulations 10000 --steps 500
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from matplotlib.axes import Axes
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier
from torch import Tensor
from torch.utils.data import TensorDataset

from examples.conditional_density import fit
from examples.density_2d import sharp_swish
from examples.parsing import command_line
from examples.plotting import save_figure
from pyro_resflow import conditional_residual_flow, plots
from pyro_resflow.logdet import Exact
from pyro_resflow.nn import SpectralNorm

PRIOR = dist.Uniform(-torch.ones(2), torch.ones(2)).to_event(1)
CENTRE = torch.tensor([0.25, 0.0])
RADIUS = dist.Normal(0.1, 0.01)


def crescent(n: int) -> Tensor:
    """Draw the simulator's noise p, a half circle of radius 0.1 at (0.25, 0); shape ``(n, 2)``."""
    angle = math.pi * (torch.rand(n) - 0.5)
    radius = RADIUS.sample((n,))
    return CENTRE + radius[:, None] * torch.stack([angle.cos(), angle.sin()], dim=-1)


def simulator_signal(theta: Tensor) -> Tensor:
    """Return the simulator's signal, (-|theta_1 + theta_2|, theta_2 - theta_1) / sqrt 2."""
    first, second = theta.unbind(-1)
    return torch.stack([-(first + second).abs(), second - first], dim=-1) / math.sqrt(2)


def simulate(theta: Tensor) -> Tensor:
    """Simulate one observation for each parameter; shapes ``(n, 2)``."""
    return crescent(len(theta)) + simulator_signal(theta)


def log_likelihood(theta: Tensor, x: Tensor) -> Tensor:
    """Return log p(x | theta), by the noise in polar coordinates; shape ``(n,)``."""
    offset = x - simulator_signal(theta) - CENTRE
    radius = offset.norm(dim=-1)
    density = RADIUS.log_prob(radius) - radius.log() - math.log(math.pi)
    return density.where(offset[..., 0] > 0, -math.inf)


class Posterior:
    """The true posterior at one observation, sampled exactly.

    The observation x and the noise p determine theta up to a sign: a map that preserves volume
    takes x - p to theta_2 - theta_1 and |theta_1 + theta_2|. The sampler draws noise, computes
    theta with a random sign, and keeps it if it exists and lies in the prior's support.

    Args:
        x: The observation, shape ``(2,)``.
        proposals: Draws of the noise that estimate the normalising constant.

    Raises:
        ValueError: If hardly any noise leads from the prior to x.
    """

    def __init__(self, x: Tensor, proposals: int = 100_000) -> None:
        self.x = x
        kept = len(self._propose(proposals)) / proposals
        if kept < 1e-3:
            raise ValueError(
                f"x: hardly any noise leads from the prior to {x.tolist()}; give an observation "
                "of the simulator"
            )
        # Both signs share one proposal, and each covers the likelihood once.
        self.log_evidence = math.log(2 * kept)

    def sample(self, n: int) -> Tensor:
        """Return independent draws of the posterior, shape ``(n, 2)``."""
        draws = self._propose(n)
        while len(draws) < n:
            draws = torch.cat([draws, self._propose(n)])
        return draws[:n]

    def _propose(self, n: int) -> Tensor:
        """Return the parameters accepted from n draws of the noise."""
        down, across = (math.sqrt(2) * (self.x - crescent(n))).unbind(-1)
        total = down * (2 * torch.randint(2, (n,)) - 1)
        theta = torch.stack([total - across, total + across], dim=-1) / 2
        return theta[(down < 0) & (theta.abs() <= 1).all(-1)]

    def log_prob(self, theta: Tensor) -> Tensor:
        """Return the log-density, shape ``(n,)``, of theta in the support of the prior."""
        return log_likelihood(theta, self.x) - self.log_evidence


def build(blocks: int, width: int) -> dist.ConditionalTransformedDistribution:
    """Build q(theta | x): normal noise through a conditional residual flow.

    In two dimensions the exact log-determinant costs no more than an estimate of it.
    """
    flow = conditional_residual_flow(
        2,
        2,
        blocks,
        [width, width],
        fast="density",
        logdet=Exact(),
        activation=sharp_swish,
        norm=SpectralNorm(0.995, tolerance=1e-3),
    )
    base = dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)
    return dist.ConditionalTransformedDistribution(base, [flow])


def c2st(first: Tensor, second: Tensor, *, folds: int = 5) -> float:
    """Return the accuracy of a classifier between two sets of points; 0.5 if they are alike.

    The benchmark's classifier has two hidden layers with ten units for each dimension.

    Args:
        first: Points, shape ``(n, d)``.
        second: Points, shape ``(n, d)``.
        folds: Folds of the cross-validation.

    Reference:
        Lopez-Paz and Oquab, Revisiting Classifier Two-Sample Tests, 2017.
    """
    mean, std = first.mean(0), first.std(0)
    points = ((torch.cat([first, second]) - mean) / std).numpy()
    labels = torch.cat([torch.zeros(len(first)), torch.ones(len(second))]).numpy()
    widths = (10 * first.shape[-1],) * 2
    classifier = MLPClassifier(widths, max_iter=1000, random_state=0)
    shuffled = KFold(folds, shuffle=True, random_state=0)
    return float(cross_val_score(classifier, points, labels, cv=shuffled).mean())


@torch.no_grad()
def compare(
    q: dist.TransformedDistribution, posterior: Posterior, n: int
) -> tuple[float, float, float]:
    """Return C2ST of q, C2ST of a second set of exact draws, and KL(p | q) in nats."""
    exact = posterior.sample(2 * n)
    divergence = (posterior.log_prob(exact) - q.log_prob(exact)).mean().item()
    return c2st(exact[:n], q.sample((n,))), c2st(exact[:n], exact[n:]), divergence


@torch.no_grad()
def draw_row(axes: Sequence[Axes], q: dist.TransformedDistribution, posterior: Posterior) -> None:
    """Draw exact samples, as many of q, and the density of q around one crescent."""
    exact = posterior.sample(2000)
    for axis, points in zip(axes, (exact, q.sample((2000,))), strict=False):
        plots.samples(points, s=1, ax=axis).set(xlim=(-1, 1), ylim=(-1, 1))
    near = exact[exact.sum(-1) > 0]
    xlim, ylim = ((middle - 0.2, middle + 0.2) for middle in near.mean(0).tolist())
    plots.density_2d(q, xlim=xlim, ylim=ylim, ax=axes[2])
    plots.samples(near[:200], color="white", ax=axes[2]).set(xlim=xlim, ylim=ylim)


def main(
    simulations: int = 100_000,
    steps: int = 4000,
    blocks: int = 8,
    width: int = 32,
    batch_size: int = 256,
    learning_rate: float = 1e-2,
    observations: int = 10,
    points: int = 10_000,
    seed: int = 0,
    folder: Path = Path("runs/two_moons_posterior"),
) -> None:
    """Fit q(theta | x) to simulations, compare it with the true posterior and draw both.

    Args:
        simulations: Simulated pairs of parameter and observation.
        steps: Training steps.
        blocks: Conditional residual blocks.
        width: Size of both hidden layers of a block.
        batch_size: Pairs at each step.
        learning_rate: Largest learning rate of Adam; it rises for a fifth of the steps.
        observations: Number of new observations to compare q at.
        points: Draws of each posterior for the comparison.
        seed: Random seed.
        folder: Folder for the figure.
    """
    pyro.set_rng_seed(seed)
    theta = PRIOR.sample((simulations,))
    pairs = TensorDataset(simulate(theta), theta)
    conditional = build(blocks, width)
    fit(
        conditional,
        lambda n: pairs[torch.randint(simulations, (n,))],
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
    )
    figures = []
    for x in simulate(PRIOR.sample((observations,))):
        posterior = Posterior(x)
        figures.append(compare(conditional.condition(x), posterior, points))
        print(
            f"x = ({x[0]:+.2f}, {x[1]:+.2f}): C2ST {figures[-1][0]:.3f} "
            f"(exact against exact {figures[-1][1]:.3f}), KL {figures[-1][2]:.3f} nats",
            flush=True,
        )
    found = torch.tensor(figures)
    mean, error = found.mean(0), found.std(0) / observations**0.5
    print(
        f"mean: C2ST {mean[0]:.3f} +- {error[0]:.3f} (exact against exact {mean[1]:.3f} +- "
        f"{error[1]:.3f}), KL {mean[2]:.3f} +- {error[2]:.3f} nats"
    )
    draw(conditional, folder / "two_moons_posterior.png")


def draw(conditional: dist.ConditionalTransformedDistribution, path: Path) -> None:
    """Draw the posteriors at x = (0, 0) and at two other observations, one row each."""
    observed = torch.tensor([[0.0, 0.0], [-0.5, 0.3], [0.2, -0.8]])
    figure, axes = plt.subplots(3, 3, figsize=(9, 9), layout="constrained")
    for row, x in zip(axes, observed, strict=True):
        draw_row(row, conditional.condition(x), Posterior(x))
        row[0].set_ylabel(f"x = ({x[0]:.1f}, {x[1]:.1f})")
    for axis, title in zip(axes[0], ("exact draws", "draws of q", "density of q"), strict=True):
        axis.set_title(title)
    save_figure(figure, path)


if __name__ == "__main__":
    command_line(main)
