"""Train a flow in Pyro, sample with it in NumPyro.

A residual flow is fitted to points in the plane and then serves as the prior of a point of which
only the sum of its coordinates is seen, with noise. The posterior is sampled by Pyro's NUTS with
the flow itself, and by NumPyro's with its translation.

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
from pyro_resflow.interop.numpyro import to_numpyro


@dataclass(frozen=True)
class Run:
    """One run of a sampler.

    Attributes:
        name: of the sampler.
        samples: shape ``(draws, 2)``.
        seconds: of processor time, compilation and warm-up included.
    """

    name: str
    samples: np.ndarray
    seconds: float

    @property
    def effective(self) -> float:
        """Effective sample size of the coordinate that has the least."""
        return float(numpyro.diagnostics.effective_sample_size(self.samples[None]).min())

    def row(self) -> str:
        """A line of the printed table."""
        mean, std = self.samples.mean(0), self.samples.std(0)
        return (
            f"{self.name:<20} {self.seconds:8.1f} {self.effective / self.seconds:12.1f}   "
            f"{mean[0]:6.2f} ({std[0]:.2f}) {mean[1]:6.2f} ({std[1]:.2f})"
        )


HEADER = f"{'sampler':<20} {'seconds':>8} {'ESS/second':>12}   means (standard deviations)"


def sample_in_pyro(
    prior: dist.TransformedDistribution, seen: float, noise: float, warmup: int, num_samples: int
) -> Run:
    """The posterior by Pyro's NUTS."""

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
    """The same posterior by NumPyro's NUTS: a run that has to compile, and another one."""
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
    """Between the two libraries' log densities at some points, in nats."""
    theirs = np.asarray(jax.jit(to_numpyro(prior).log_prob)(points.numpy()))
    return float(abs(theirs - prior.log_prob(points).numpy()).max())


@torch.no_grad()
def draw(
    prior: dist.TransformedDistribution, runs: Sequence[Run], seen: float, path: Path
) -> None:
    """The prior's density, and each sampler's points on it."""
    limit = 4.5
    centres = torch.linspace(-limit, limit, 200)
    height = prior.log_prob(torch.cartesian_prod(centres, centres)).exp().reshape(200, 200)
    figure, axes = plt.subplots(
        1, len(runs), figsize=(4 * len(runs), 4.3), squeeze=False, layout="constrained"
    )
    for axis, run in zip(axes.flat, runs, strict=True):
        axis.pcolormesh(centres, centres, height.T, cmap="Greys", rasterized=True)
        axis.axline((seen, 0), slope=-1, color="tab:orange", linewidth=1)
        axis.plot(*run.samples.T, ".", markersize=2, alpha=0.6)
        axis.set(title=run.name, xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


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
    """Fit a prior in Pyro, sample a posterior in both libraries, print and draw what comes out.

    Args:
        data: what the prior is fitted to, one of the data sets of ``examples.density_2d``.
        steps: training steps.
        blocks: residual blocks.
        width: size of both hidden layers of a block.
        learning_rate: of Adam at the start; it falls to a twentieth.
        seen: the sum of the coordinates that was observed.
        noise: standard deviation of that observation.
        warmup: steps of warm-up of each sampler.
        num_samples: samples of each sampler.
        seed: seed of everything random.
        folder: where the figure is written.
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
    print(f"wrote {folder / 'numpyro_sampling.png'}")


if __name__ == "__main__":
    command_line(main)
