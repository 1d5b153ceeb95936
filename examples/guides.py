"""Guides compared on five posteriors, at equal steps or in equal time.

The posteriors are eight schools, Neal's funnel, a banana, 30 group effects, and a logistic
regression. Each guide is trained at each learning rate, for the same number of steps or of
processor seconds with the same number of particles; the learning rate with the best ELBO counts.
The flows get the width that brings their number of parameters nearest to ``--parameters``. The
table is measured on fresh draws with a deterministic log-density: the ELBO and its standard error;
Pareto's k of the importance weights, which should be below 0.7; and the root mean square error of
the posterior means, in posterior standard deviations. The true moments come from a closed form or
a long NUTS run.

    python -m examples.guides
    python -m examples.guides --seconds 60 --particles 16
    python -m examples.guides --problems '[banana]' --guides '[AutoNormal,AutoResidualFlow]'
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Literal

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
import zuko
from matplotlib.axes import Axes
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import (
    AutoGuide,
    AutoIAFNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalizingFlow,
)
from pyro.infer.importance import vectorized_importance_weights
from torch import Tensor, nn

from examples.parsing import command_line
from examples.posteriors import PROBLEMS, Moments, Problem
from examples.training import Budget, Training, train_within
from pyro_resflow.guides import AutoResidualFlow
from pyro_resflow.interop.arviz import psis
from pyro_resflow.interop.zuko import from_zuko
from pyro_resflow.logdet import Exact
from pyro_resflow.transforms import ActNorm, Compose

pyro.enable_validation(True)  # importing zuko turns it off

Builder = Callable[[Callable[[], None], int], AutoGuide]
"""Builds the guide of a model, given the width of the hidden layers."""


def spline(width: int, latent_dim: int) -> Compose:
    """Build zuko's autoregressive rational-quadratic splines, fast from noise to latent variables.

    They are the identity outside [-5, 5]; a scale and shift follows.
    """
    flow = zuko.flows.NSF(latent_dim, transforms=2, hidden_features=(width, width))
    return Compose([from_zuko(flow.transform.inv), ActNorm(latent_dim, initialized=True)])


def residual_flow_guide(model: Callable[[], None], width: int) -> AutoResidualFlow:
    """Build the guide of this package."""
    return AutoResidualFlow(model, hidden_dims=[width])


GUIDES: dict[str, Builder] = {
    "AutoNormal": lambda model, _: AutoNormal(model),
    "AutoMultivariateNormal": lambda model, _: AutoMultivariateNormal(model),
    "AutoIAFNormal": lambda model, width: AutoIAFNormal(
        model, hidden_dim=[width, width], num_transforms=2
    ),
    "spline": lambda model, width: AutoNormalizingFlow(model, partial(spline, width)),
    "AutoResidualFlow": residual_flow_guide,
}
ProblemName = Literal["eight_schools", "funnel", "banana", "group_effects", "logistic_regression"]
GuideName = Literal[
    "AutoNormal", "AutoMultivariateNormal", "AutoIAFNormal", "spline", "AutoResidualFlow"
]


def size(guide: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in guide.parameters())


def initialized_guide(build: Builder, problem: Problem, width: int) -> AutoGuide:
    """Build a guide of this width and run it once, which creates its parameters."""
    pyro.clear_param_store()
    guide = build(problem.model, width)
    guide()
    return guide


def fitting_width(build: Builder, problem: Problem, parameters: int) -> int:
    """Return the width that brings the number of parameters nearest to the given one."""
    # Pyro's autoregressive networks need a unit for every entry.
    least = problem.latent_dim if build is GUIDES["AutoIAFNormal"] else 4
    widths = range(least, least + 129, 4)

    def size_at(width: int) -> int:
        return size(initialized_guide(build, problem, width))

    above = bisect_left(widths, parameters, key=size_at)
    nearest = widths[max(above - 1, 0) : above + 1]
    return min(nearest, key=lambda width: abs(size_at(width) - parameters))


def fit(
    guide: AutoGuide, problem: Problem, *, budget: Budget, particles: int, learning_rate: float
) -> Training:
    """Maximise the ELBO until the budget is spent.

    The learning rate falls to a hundredth.
    """
    elbo = Trace_ELBO(
        num_particles=particles,
        vectorize_particles=True,
        max_plate_nesting=problem.max_plate_nesting,
    )
    optimizer = pyro.optim.ClippedAdam({"lr": learning_rate, "clip_norm": 10.0})
    return train_within(
        budget,
        SVI(problem.model, guide, optimizer, elbo),
        repeat(()),
        learning_rate=learning_rate,
        last=0.01,
        description=type(guide).__name__,
    )


@dataclass(frozen=True)
class Score:
    """Measurements of a trained guide.

    Attributes:
        elbo: The ELBO in nats.
        error: Standard error of the ELBO.
        pareto_k: Shape of the tail of the importance weights.
        mean_error: Root mean square error of the means, in posterior standard deviations.
        draws: Draws of the variables, by name.
    """

    elbo: float
    error: float
    pareto_k: float
    mean_error: float
    draws: dict[str, Tensor]


@torch.no_grad()
def score(guide: AutoGuide, problem: Problem, truth: Moments, draws: int) -> Score:
    """Measure a guide on fresh draws, in batches of a thousand."""
    if isinstance(guide, AutoResidualFlow):
        guide.set_logdet(Exact())
    log_weights, values = [], []
    for _ in range(math.ceil(draws / 1000)):
        found, _, trace = vectorized_importance_weights(
            problem.model,
            guide,
            num_samples=1000,
            max_plate_nesting=problem.max_plate_nesting,
        )
        log_weights.append(found)
        values.append(
            {
                name: trace.nodes[name]["value"].reshape(1000, *mean.shape)
                for name, mean in truth.mean.items()
            }
        )
    log_weight = torch.cat(log_weights).double()
    samples = {name: torch.cat([each[name] for each in values]) for name in truth.mean}
    errors = [
        ((samples[name].mean(0) - mean) / truth.std[name]).flatten()
        for name, mean in truth.mean.items()
    ]
    return Score(
        elbo=log_weight.mean().item(),
        error=log_weight.std().item() / len(log_weight) ** 0.5,
        pareto_k=psis(log_weight.numpy()).k,
        mean_error=torch.cat(errors).square().mean().sqrt().item(),
        draws=samples,
    )


def best(
    build: Builder,
    problem: Problem,
    truth: Moments,
    *,
    width: int,
    budget: Budget,
    particles: int,
    learning_rates: Sequence[float],
    draws: int,
    seed: int,
) -> tuple[Score, Training]:
    """Return the best score over the learning rates, and the training that led to it."""
    tried = []
    for learning_rate in learning_rates:
        pyro.set_rng_seed(seed)
        guide = initialized_guide(build, problem, width)
        try:
            training = fit(
                guide, problem, budget=budget, particles=particles, learning_rate=learning_rate
            )
            found = score(guide, problem, truth, draws)
        except ValueError as error:  # a diverged guide draws nan
            print(f"{type(guide).__name__} at {learning_rate:g}: {str(error).splitlines()[0]}")
            continue
        if math.isfinite(found.elbo):
            tried.append((found, training))
    if not tried:
        raise RuntimeError(
            f"learning_rates {list(learning_rates)}: the guide diverged at each; try smaller ones"
        )
    return max(tried, key=lambda result: result[0].elbo)


PLANES = {"funnel": ("x", "v"), "banana": ("a", "b")}
"""The two variables of each picture; of a vector, the first entry."""


def log_density(name: str, first: Tensor, second: Tensor) -> Tensor:
    """Return the true log-density in the plane of the picture."""
    if name == "funnel":
        scale = (second / 2).exp()
        return dist.Normal(0.0, 3.0).log_prob(second) + dist.Normal(0.0, scale).log_prob(first)
    return dist.Normal(0.0, 2.0).log_prob(first) + dist.Normal(
        0.5 * first.square() - 2, 0.5
    ).log_prob(second)


def draw(axis: Axes, name: str, draws: dict[str, Tensor]) -> None:
    """Draw samples of a guide over contours of the true density."""
    limits = {"funnel": (-15, 15, -9, 9), "banana": (-7, 7, -5, 15)}[name]
    first = torch.linspace(limits[0], limits[1], 301)
    second = torch.linspace(limits[2], limits[3], 301)
    height = log_density(name, *torch.meshgrid(first, second, indexing="xy"))
    levels = height.max() - torch.tensor([8.0, 4.5, 2.0, 0.5])
    x, y = (draws[key].reshape(len(draws[key]), -1)[:, 0] for key in PLANES[name])
    axis.contour(
        first,
        second,
        height,
        levels=levels,
        colors="tab:orange",
        linewidths=0.8,
        linestyles="solid",
    )
    axis.scatter(x[:3000], y[:3000], s=1, color="tab:blue", alpha=0.4, rasterized=True)
    axis.set(xlim=limits[:2], ylim=limits[2:], xticks=[], yticks=[])


def main(
    problems: Sequence[ProblemName] = (
        "eight_schools",
        "funnel",
        "banana",
        "group_effects",
        "logistic_regression",
    ),
    guides: Sequence[GuideName] = (
        "AutoNormal",
        "AutoMultivariateNormal",
        "AutoIAFNormal",
        "spline",
        "AutoResidualFlow",
    ),
    steps: int = 2000,
    seconds: float | None = None,
    particles: int = 64,
    learning_rates: Sequence[float] = (3e-3, 1e-2, 3e-2),
    parameters: int = 8000,
    draws: int = 20000,
    nuts_draws: int = 2000,
    seed: int = 0,
    folder: Path = Path("runs/guides"),
) -> None:
    """Train every guide on every problem, print the table and draw the funnel and the banana.

    Times are processor seconds on one thread.

    Args:
        problems: The posteriors.
        guides: The guides.
        steps: Optimisation steps for each guide and learning rate.
        seconds: Processor seconds for each guide and learning rate, in place of steps.
        particles: Draws at each step.
        learning_rates: Initial learning rates to try; each falls to a hundredth.
        parameters: Approximate number of parameters of each flow.
        draws: Fresh draws to measure each guide on.
        nuts_draws: Length of the reference chain of the logistic regression.
        seed: Random seed.
        folder: Folder for the table and the figure.
    """
    torch.set_num_threads(1)  # the networks are too small to share
    folder.mkdir(parents=True, exist_ok=True)
    planes = [name for name in problems if name in PLANES]
    figure, axes = plt.subplots(
        max(1, len(planes)),
        len(guides),
        figsize=(2.4 * len(guides), 2.4 * max(1, len(planes))),
        squeeze=False,
        layout="constrained",
    )
    lines = [
        "| problem | guide | parameters | ELBO | k | error of means | lr | steps | ms/step |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    print("\n".join(lines))
    for name in problems:
        problem = PROBLEMS[name]
        pyro.set_rng_seed(seed)
        truth = problem.moments(nuts_draws)
        if truth.log_evidence is not None:
            print(f"| {name} | log evidence | | {truth.log_evidence:.3f} | | | | | |")
        for column, guide_name in enumerate(guides):
            build = GUIDES[guide_name]
            width = fitting_width(build, problem, parameters)
            found, training = best(
                build,
                problem,
                truth,
                width=width,
                budget=Budget(steps, seconds),
                particles=particles,
                learning_rates=learning_rates,
                draws=draws,
                seed=seed,
            )
            lines.append(
                f"| {name} | {guide_name} | {size(initialized_guide(build, problem, width))} "
                f"| {found.elbo:.3f} ± {found.error:.3f} | {found.pareto_k:.2f} "
                f"| {found.mean_error:.3f} | {training.learning_rate:g} | {training.steps} "
                f"| {1000 * training.seconds / training.steps:.1f} |"
            )
            print(lines[-1], flush=True)
            if name in planes:
                axis = axes[planes.index(name), column]
                draw(axis, name, found.draws)
                axis.set_title(guide_name, fontsize=9)
    (folder / "table.md").write_text("\n".join(lines) + "\n")
    if planes:
        figure.savefig(folder / "guides.png", dpi=150)
    plt.close(figure)
    print(f"wrote {folder}")


if __name__ == "__main__":
    command_line(main)
