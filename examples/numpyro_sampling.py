"""Train a flow in Pyro, sample with it in NumPyro.

A residual flow is fitted to points in the plane and then serves as the prior of a point. The only
observation is the sum of the point's coordinates, with noise. Pyro's NUTS samples the posterior
with the flow itself, and NumPyro's NUTS with its translation.

    python -m examples.numpyro_sampling
    python -m examples.numpyro_sampling --data rings --num_samples 200
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import pyro
import pyro.distributions as dist
import torch
from numpyro import infer as numpyro_infer
from pyro.infer import MCMC, NUTS

from examples.density_2d import DATA, Name, build, fit, held_out
from examples.parsing import command_line
from examples.plotting import save_figure
from pyro_resflow import plots
from pyro_resflow.interop.numpyro import to_numpyro


@dataclass(frozen=True)
class Run:
    """One run of a sampler.

    Attributes:
        name: Name of the sampler.
        samples: Draws, shape ``(draws, 2)``.
        seconds: Processor time, with compilation and warm-up.
    """

    name: str
    samples: np.ndarray
    seconds: float

    @property
    def effective(self) -> float:
        """Effective sample size, the smaller of the two coordinates'."""
        return float(numpyro.diagnostics.effective_sample_size(self.samples[None]).min())

    def row(self) -> str:
        """Format a line of the table."""
        mean, std = self.samples.mean(0), self.samples.std(0)
        return (
            f"{self.name:<20} {self.seconds:8.1f} {self.effective / self.seconds:12.1f}   "
            f"{mean[0]:6.2f} ({std[0]:.2f}) {mean[1]:6.2f} ({std[1]:.2f})"
        )


HEADER = f"{'sampler':<20} {'seconds':>8} {'ESS/second':>12}   means (standard deviations)"


def sample_in_pyro(
    prior: dist.TransformedDistribution, seen: float, noise: float, warmup: int, num_samples: int
) -> Run:
    """Sample the posterior by Pyro's NUTS."""

    def model() -> None:
        x = pyro.sample("x", prior)
        pyro.sample("sum", dist.Normal(x.sum(-1), noise), obs=torch.tensor(seen))

    for parameter in prior.transforms[0].parameters():
        parameter.requires_grad_(False)
    start = time.process_time()
    mcmc = MCMC(NUTS(model), num_samples=num_samples, warmup_steps=warmup, disable_progbar=True)
    mcmc.run()
    seconds = time.process_time() - start
    return Run("Pyro", mcmc.get_samples()["x"].numpy(), seconds)


def sample_in_numpyro(
    prior: dist.TransformedDistribution,
    seen: float,
    noise: float,
    warmup: int,
    num_samples: int,
    seed: int,
) -> list[Run]:
    """Sample the same posterior by NumPyro's NUTS: one run that compiles, and a second one."""
    translated = to_numpyro(prior)

    def model() -> None:
        x = numpyro.sample("x", translated)
        numpyro.sample("sum", numpyro.distributions.Normal(x.sum(-1), noise), obs=seen)

    mcmc = numpyro_infer.MCMC(
        numpyro_infer.NUTS(model),
        num_warmup=warmup,
        num_samples=num_samples,
        progress_bar=False,
    )
    runs = []
    for i, name in enumerate(("NumPyro, compiling", "NumPyro, again")):
        start = time.process_time()
        mcmc.run(jax.random.PRNGKey(seed + i))
        samples = np.asarray(mcmc.get_samples()["x"])
        runs.append(Run(name, samples, time.process_time() - start))
    return runs


@torch.no_grad()
def largest_difference(prior: dist.TransformedDistribution, points: torch.Tensor) -> float:
    """Return the largest difference between the libraries' log densities at points, in nats."""
    theirs = np.asarray(jax.jit(to_numpyro(prior).log_prob)(points.numpy()))
    return float(abs(theirs - prior.log_prob(points).numpy()).max())


@torch.no_grad()
def draw(
    prior: dist.TransformedDistribution, runs: Sequence[Run], seen: float, path: Path
) -> None:
    """Draw the prior's density, with the points of each sampler."""
    limits = {"xlim": (-4.5, 4.5), "ylim": (-4.5, 4.5)}
    figure, axes = plt.subplots(
        1, len(runs), figsize=(4 * len(runs), 4.3), squeeze=False, layout="constrained"
    )
    for axis, run in zip(axes.flat, runs, strict=True):
        plots.density_2d(prior, **limits, ax=axis, cmap="Greys", rasterized=True)
        axis.axline((seen, 0), slope=-1, color="tab:orange", linewidth=1)
        axis.plot(*run.samples.T, ".", markersize=2, alpha=0.6)
        axis.set(title=run.name, **limits)
    save_figure(figure, path, dpi=100)


def main(
    data: Name = "two_moons",
    steps: int = 600,
    blocks: int = 4,
    width: int = 32,
    learning_rate: float = 1e-2,
    seen: float = 2.5,
    noise: float = 0.3,
    warmup: int = 200,
    num_samples: int = 500,
    seed: int = 0,
    folder: Path = Path("runs/numpyro_sampling"),
) -> None:
    """Fit a prior in Pyro, sample a posterior in both libraries, print and draw the results.

    Args:
        data: The data set to fit the prior to, one of ``examples.density_2d``.
        steps: Training steps.
        blocks: Residual blocks.
        width: Size of both hidden layers of a block.
        learning_rate: Initial learning rate of Adam; it falls to a twentieth.
        seen: The observed sum of the coordinates.
        noise: Standard deviation of the observation.
        warmup: Steps of warm-up of each sampler.
        num_samples: Samples of each sampler.
        seed: Random seed.
        folder: Folder for the figure.
    """
    torch.set_num_threads(1)  # the networks are too small to share
    pyro.set_rng_seed(seed)
    prior = build(blocks, width)
    fit(prior, DATA[data], steps=steps, batch_size=256, learning_rate=learning_rate)
    points = DATA[data](2000)
    nats, error = held_out(prior, points)
    print(f"prior: {nats:.3f} +- {error:.3f} nats per held-out point")
    print(f"largest difference of the log densities: {largest_difference(prior, points):.1e}")
    slow = sample_in_pyro(prior, seen, noise, warmup, num_samples)
    runs = [slow, *sample_in_numpyro(prior, seen, noise, warmup, num_samples, seed)]
    print(HEADER, *(run.row() for run in runs), sep="\n")
    for run in runs[1:]:
        print(f"{run.name}: {slow.seconds / run.seconds:.1f} times as fast as Pyro")
    draw(prior, runs[::2], seen, folder / "numpyro_sampling.png")


if __name__ == "__main__":
    command_line(main)
