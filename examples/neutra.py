"""NeuTra on Neal's funnel: NUTS in the coordinates of a trained guide, against plain NUTS.

An AutoResidualFlow is trained on the funnel in ten dimensions. NUTS then samples the guide's
noise, whose posterior is nearly standard normal. The table counts after the warm-up: bulk
effective sample sizes, of the log-variance v and the smallest of all ten entries; gradients of the
energy; and the mean and standard deviation of v, which should be 0 and 3.

    python -m examples.neutra
    python -m examples.neutra --steps 300 --draws 200
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import arviz
import matplotlib.pyplot as plt
import numpy as np
import pyro
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.reparam import NeuTraReparam
from torch import Tensor

from examples.guides import Budget, fit, residual_flow_guide
from examples.parsing import command_line
from examples.posteriors import PROBLEMS, funnel
from pyro_resflow.guides import AutoResidualFlow
from pyro_resflow.logdet import Exact


@dataclass
class Chain:
    """Draws after the warm-up, and their cost.

    Attributes:
        samples: Draws by the names of the latent variables, shape ``(draws, *shape)``.
        gradients: Evaluations of the energy and its gradient, one for each leapfrog step.
        seconds: Processor time of the draws.
    """

    samples: dict[str, Tensor]
    gradients: int
    seconds: float


def sample(model: Callable[[], None], draws: int, warmup: int) -> Chain:
    """Run NUTS on a model; count calls and time from the end of the warm-up."""
    calls, began_at, began = 0, 0, 0.0

    def counted() -> None:
        nonlocal calls
        calls += 1  # the integrator calls the model once for each gradient
        model()

    def hook(kernel: Any, samples: dict[str, Tensor], stage: str, i: int) -> None:
        nonlocal began_at, began
        if stage.lower().startswith("warmup"):
            began_at, began = calls, time.process_time()

    mcmc = MCMC(NUTS(counted), draws, warmup, disable_progbar=True, hook_fn=hook)
    mcmc.run()
    return Chain(mcmc.get_samples(), calls - began_at, time.process_time() - began)


def train_guide(steps: int, particles: int, learning_rate: float, width: int) -> AutoResidualFlow:
    """Train a guide on the funnel; return it frozen, with the exact log-determinant."""
    pyro.clear_param_store()
    guide = residual_flow_guide(funnel, width)
    fit(
        guide,
        PROBLEMS["funnel"],
        budget=Budget(steps),
        particles=particles,
        learning_rate=learning_rate,
    )
    guide.set_logdet(Exact())
    return guide.requires_grad_(False).eval()


def sample_guide_noise(guide: AutoResidualFlow, draws: int, warmup: int) -> Chain:
    """Run NUTS on the funnel reparameterised by NeuTra, and map the draws back."""
    neutra = NeuTraReparam(guide)
    chain = sample(neutra.reparam(funnel), draws, warmup)
    with torch.no_grad():
        (noise,) = chain.samples.values()
        return Chain(neutra.transform_sample(noise), chain.gradients, chain.seconds)


def effective_sizes(chain: Chain) -> np.ndarray:
    """Return the bulk effective sample sizes of v and of the nine entries of x."""
    values = torch.cat([chain.samples["v"].reshape(-1, 1), chain.samples["x"].reshape(-1, 9)], 1)
    return np.array([arviz.ess(column.double().numpy()[None]) for column in values.T])


def table_row(name: str, chain: Chain) -> str:
    """Format one row of the table."""
    sizes = effective_sizes(chain)
    v = chain.samples["v"]
    return (
        f"| {name} | {len(v)} | {chain.gradients} | {sizes[0]:.0f} | {sizes.min():.0f} "
        f"| {1000 * sizes[0] / chain.gradients:.2f} | {1000 * sizes.min() / chain.gradients:.2f} "
        f"| {sizes.min() / chain.seconds:.2f} | {v.mean():.2f} | {v.std():.2f} |"
    )


def main(
    steps: int = 2000,
    particles: int = 64,
    learning_rate: float = 2e-2,
    width: int = 32,
    draws: int = 1000,
    warmup: int = 500,
    seed: int = 0,
    folder: Path = Path("runs/neutra"),
) -> None:
    """Train a guide, run both chains, print the table and draw the chains of v.

    Args:
        steps: Optimisation steps of the guide.
        particles: Draws at each step.
        learning_rate: Initial learning rate; it falls to a hundredth.
        width: Width of the hidden layer of a residual block.
        draws: Length of each chain after the warm-up.
        warmup: Length of the warm-up.
        seed: Random seed.
        folder: Folder for the table and the figure.
    """
    torch.set_num_threads(1)  # the networks are too small to share
    pyro.set_rng_seed(seed)
    guide = train_guide(steps, particles, learning_rate, width)
    chains = {
        "NUTS": sample(funnel, draws, warmup),
        "NeuTra": sample_guide_noise(guide, draws, warmup),
    }
    lines = [
        "| chain | draws | gradients | ESS of v | least ESS | ESS of v per 1000 gradients "
        "| least ESS per 1000 gradients | least ESS per second | mean of v | std of v |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(table_row(name, chain) for name, chain in chains.items()),
    ]
    print("\n".join(lines))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text("\n".join(lines) + "\n")
    figure, axes = plt.subplots(1, 2, figsize=(8, 2.6), sharey=True, layout="constrained")
    for axis, (name, chain) in zip(axes, chains.items(), strict=True):
        axis.plot(chain.samples["v"], linewidth=0.6)
        axis.set(title=name, xlabel="draw", ylim=(-12, 12))
    axes[0].set_ylabel("v")
    figure.savefig(folder / "neutra.png", dpi=150)
    plt.close(figure)
    print(f"wrote {folder}")


if __name__ == "__main__":
    command_line(main)
