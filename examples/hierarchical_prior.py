"""A hierarchical regression with a residual flow as the prior of the group effects.

Each group has an intercept, a slope and a few noisy points. The distribution of the effects over
groups is unknown; here it is a ring, which no normal describes. SVI fits a residual flow to that
distribution, together with a normal posterior for each group. NUTS then samples the exact
posterior under the fitted flow, whose log-determinant is exact. The program compares SVI with
NUTS, and both with the same model under a normal prior.

    python -m examples.hierarchical_prior
    python -m examples.hierarchical_prior --groups 50 --steps 500 --samples 100
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide.initialization import init_to_value
from torch import Tensor
from torch.distributions import constraints

from examples.parsing import command_line
from examples.plotting import save_figure
from examples.training import decaying_adam, train
from pyro_resflow import plots, residual_flow
from pyro_resflow.logdet import Exact
from pyro_resflow.transforms import ActNorm, Inverse, initialize

NOISE = 0.5


@dataclass(frozen=True)
class Groups:
    """Data of J groups with n points each.

    Attributes:
        effects: True intercept and slope of each group, shape ``(J, 2)``.
        x: Inputs, shape ``(J, n)``.
        y: Outputs, shape ``(J, n)``.
    """

    effects: Tensor
    x: Tensor
    y: Tensor

    def least_squares(self) -> Tensor:
        """Return the least-squares intercept and slope of each group, shape ``(J, 2)``."""
        return torch.linalg.lstsq(design(self.x), self.y[..., None]).solution[..., 0]


def design(x: Tensor) -> Tensor:
    """Return the design matrix with columns (1, x), shape ``(J, n, 2)``."""
    return torch.stack([torch.ones_like(x), x], dim=-1)


def simulate(groups: int, points: int) -> Groups:
    """Draw effects near a circle of radius 2, and noisy points on their lines."""
    angle = 2 * math.pi * torch.rand(groups)
    radius = 2 + 0.1 * torch.randn(groups)
    effects = radius[:, None] * torch.stack([angle.cos(), angle.sin()], dim=-1)
    x = 2 * torch.rand(groups, points) - 1
    mean = (design(x) @ effects[..., None])[..., 0]
    return Groups(effects, x, mean + NOISE * torch.randn(groups, points))


class Hierarchy:
    """The model of the groups, whose prior of group effects is learned, and its guide.

    Args:
        data: The groups.
        transform: Maps standard normal noise to effects.
    """

    def __init__(self, data: Groups, transform: dist.TransformModule) -> None:
        self.data = data
        self.transform = transform
        initialize(transform, data.least_squares())

    def prior(self) -> dist.TorchDistribution:
        """Return the prior of the effects of a group, of event shape ``(2,)``."""
        noise = dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)
        return dist.TransformedDistribution(noise, [self.transform])

    def model(self) -> None:
        """Sample the noise, the effects, and the points of every group."""
        pyro.module("prior", self.transform)
        noise = pyro.sample("noise", dist.LogNormal(0.0, 1.0))
        with pyro.plate("groups", len(self.data.x)):
            effects = pyro.sample("effects", self.prior())
            mean = (design(self.data.x) @ effects[..., None])[..., 0]
            pyro.sample("y", dist.Normal(mean, noise).to_event(1), obs=self.data.y)

    def guide(self) -> None:
        """Sample the effects of each group from a normal, and the noise from a log-normal."""
        groups = len(self.data.x)
        loc = pyro.param("loc", self.data.least_squares)
        tril = pyro.param(
            "tril",
            0.2 * torch.eye(2).expand(groups, 2, 2),
            constraint=constraints.lower_cholesky,
        )
        noise = pyro.param("noise_loc", torch.tensor(0.0))
        scale = pyro.param("noise_scale", torch.tensor(0.1), constraint=constraints.positive)
        pyro.sample("noise", dist.LogNormal(noise, scale))
        with pyro.plate("groups", groups):
            pyro.sample("effects", dist.MultivariateNormal(loc, scale_tril=tril))


def fit(hierarchy: Hierarchy, *, steps: int, learning_rate: float) -> dist.MultivariateNormal:
    """Fit prior and guide by SVI; return the guide's effects, of batch shape ``(J,)``."""
    pyro.clear_param_store()
    groups = len(hierarchy.data.x)
    train(
        poutine.scale(hierarchy.model, 1 / groups),
        poutine.scale(hierarchy.guide, 1 / groups),
        decaying_adam(learning_rate, steps),
        (() for _ in range(steps)),
        steps=steps,
    )
    return dist.MultivariateNormal(
        pyro.param("loc").detach(), scale_tril=pyro.param("tril").detach()
    )


def sample(
    hierarchy: Hierarchy, start: Tensor, *, samples: int, warmup: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Draw the effects by NUTS under the fitted prior, with diagnostics.

    Args:
        hierarchy: The model; its prior is frozen.
        start: Initial effects, shape ``(J, 2)``.
        samples: Number of draws.
        warmup: Number of warm-up draws, which are discarded.

    Returns:
        The draws, shape ``(samples, J, 2)``, and Pyro's ``n_eff`` and ``r_hat``, each ``(J, 2)``.
    """
    hierarchy.transform.requires_grad_(False).eval()
    values = {"effects": start, "noise": torch.tensor(NOISE)}
    kernel = NUTS(hierarchy.model, init_strategy=init_to_value(values=values))
    mcmc = MCMC(kernel, num_samples=samples, warmup_steps=warmup)
    mcmc.run()
    return mcmc.get_samples()["effects"], mcmc.diagnostics()["effects"]


def rmse(found: Tensor, truth: Tensor) -> str:
    """Format the root mean square error over groups, and its standard error."""
    squares = (found - truth).square().sum(-1)
    root = squares.mean().sqrt()
    error = squares.std() / len(squares) ** 0.5 / (2 * root)
    return f"{root:.3f} +- {error:.3f}"


def report(
    data: Groups,
    normal: dist.MultivariateNormal,
    guide: dist.MultivariateNormal,
    draws: Tensor,
    diagnostics: dict[str, Tensor],
) -> None:
    """Print the error of each posterior mean, and how far SVI and NUTS agree."""
    print("error of the effects (root mean square over groups):")
    print(f"  least squares, group by group  {rmse(data.least_squares(), data.effects)}")
    print(f"  normal prior, SVI              {rmse(normal.mean, data.effects)}")
    print(f"  flow prior, SVI                {rmse(guide.mean, data.effects)}")
    print(f"  flow prior, NUTS               {rmse(draws.mean(0), data.effects)}")
    std = draws.std(0)
    apart = ((guide.mean - draws.mean(0)) / std).square().mean().sqrt()
    ratio = guide.stddev / std
    print(
        f"SVI against NUTS: means {apart:.2f} standard deviations apart (root mean square), ratio "
        f"of standard deviations {ratio.median():.2f} (median)"
    )
    print(
        f"NUTS: least effective sample size {diagnostics['n_eff'].min():.0f} of {len(draws)}, "
        f"largest r-hat {diagnostics['r_hat'].max():.3f}"
    )


def main(
    groups: int = 300,
    points: int = 5,
    steps: int = 2000,
    blocks: int = 4,
    width: int = 32,
    learning_rate: float = 1e-2,
    samples: int = 500,
    warmup: int = 200,
    seed: int = 0,
    folder: Path = Path("runs/hierarchical_prior"),
) -> None:
    """Fit the model with a flow and with a normal prior, sample it, compare and draw.

    Args:
        groups: Number of groups.
        points: Points in each group.
        steps: Steps of SVI.
        blocks: Residual blocks of the flow.
        width: Size of both hidden layers of a block.
        learning_rate: Initial learning rate of Adam; it falls to a twentieth.
        samples: Number of draws by NUTS.
        warmup: Number of warm-up draws.
        seed: Random seed.
        folder: Folder for the figure.
    """
    pyro.set_rng_seed(seed)
    data = simulate(groups, points)
    flow = residual_flow(2, blocks, [width, width], fast="density", logdet=Exact())
    with_flow, with_normal = Hierarchy(data, flow), Hierarchy(data, Inverse(ActNorm(2)))
    normal = fit(with_normal, steps=steps, learning_rate=learning_rate)
    guide = fit(with_flow, steps=steps, learning_rate=learning_rate)
    unseen = simulate(20000, 2).effects
    with torch.no_grad():
        for name, hierarchy in (("normal", with_normal), ("flow", with_flow)):
            nats = -hierarchy.prior().log_prob(unseen)
            error = nats.std() / len(nats) ** 0.5
            print(f"{name} prior: {nats.mean():.3f} +- {error:.3f} nats per unseen group")
    draws, diagnostics = sample(with_flow, guide.mean, samples=samples, warmup=warmup)
    report(data, normal, guide, draws, diagnostics)
    draw(with_flow, guide, draws, folder / "hierarchical_prior.png")


@torch.no_grad()
def draw(hierarchy: Hierarchy, guide: dist.MultivariateNormal, draws: Tensor, path: Path) -> None:
    """Draw the prior, the posterior means, and the posterior of the least normal group."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.5), layout="constrained")
    data, limit = hierarchy.data, 3.2
    plots.density_2d(hierarchy.prior(), xlim=(-limit, limit), ylim=(-limit, limit), ax=axes[0])
    plots.samples(data.effects, s=3, color="white", ax=axes[0])
    axes[0].set_title("prior that SVI has fitted, true effects")
    for points, label in ((data.least_squares(), "least squares"), (draws.mean(0), "NUTS")):
        plots.samples(points, s=4, label=label, ax=axes[1])
    axes[1].set_title("effects of the groups, estimated")
    axes[1].legend(loc="center")
    standard = (draws - draws.mean(0)) / draws.std(0)
    group = standard.pow(3).mean(0).abs().sum(-1).argmax()
    for points, label in ((draws, "NUTS"), (guide.sample((len(draws),)), "SVI")):
        plots.samples(points[:, group], s=4, label=label, ax=axes[2])
    axes[2].set_title("posterior of one group")
    axes[2].legend(loc="upper right")
    for axis in axes:
        axis.set(
            xlim=(-limit, limit),
            ylim=(-limit, limit),
            aspect="equal",
            xlabel="intercept",
            ylabel="slope",
        )
    save_figure(figure, path)


if __name__ == "__main__":
    command_line(main)
