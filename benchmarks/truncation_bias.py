"""Measure the bias of a truncated power series for growing Lipschitz constants.

Small flows in the plane are fitted to two rings, for several Lipschitz constants of their blocks:
once with the exact log-determinant, and once with the truncated power series, as for an i-ResNet.
Then the log-density by the series is compared with the exact one, in float64 and at held-out
points. The program prints a Markdown table.

    python -m benchmarks.truncation_bias
"""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from jsonargparse import auto_cli
from torch import Tensor

from examples.density_2d import rings
from pyro_resflow import residual_flow
from pyro_resflow.logdet import Exact, LogDetEstimator, PowerSeries
from pyro_resflow.nn import ELU, SpectralNorm
from pyro_resflow.transforms import temporary_logdet


def fitted(
    lipschitz: float, logdet: LogDetEstimator, blocks: int, steps: int
) -> dist.TransformedDistribution:
    """Fit a flow to two rings, and convert it to float64.

    Args:
        lipschitz: upper bound for each block. Each of its three linear layers gets the third root.
        logdet: estimator for training.
        blocks: number of residual blocks.
        steps: training steps.
    """
    norm = SpectralNorm(lipschitz ** (1 / 3))
    flow = residual_flow(
        2, blocks, [32, 32], fast="density", logdet=logdet, activation=ELU, norm=norm
    )
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    optimizer = torch.optim.Adam(flow.parameters(), lr=5e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        (-dist.TransformedDistribution(base, [flow]).log_prob(rings(256)).mean()).backward()
        optimizer.step()
    base = dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1)
    return dist.TransformedDistribution(base, [flow.double()])


@torch.no_grad()
def bias(density: dist.TransformedDistribution, points: Tensor, series: PowerSeries) -> Tensor:
    """Log-density by the series minus the exact one at each point, shape ``(N,)``."""
    by_logdet = []
    for logdet in (series, Exact()):
        with temporary_logdet(density, logdet):
            by_logdet.append(density.log_prob(points))
    return by_logdet[0] - by_logdet[1]


def bound(lipschitz: float, terms: int) -> float:
    """The largest error of the truncated series, per dimension and block."""
    return -math.log1p(-lipschitz) - sum(lipschitz**k / k for k in range(1, terms + 1))


def main(
    lipschitz: Sequence[float] = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98),
    terms: int = 5,
    blocks: int = 4,
    steps: int = 400,
    samples: int = 2000,
    probes: int = 16,
    seed: int = 0,
) -> None:
    """Measure the bias of a power series of fixed length, in nats of the flow's log-density.

    Args:
        lipschitz: bounds of the blocks' Lipschitz constants, one row each.
        terms: length of the series.
        blocks: residual blocks of each flow.
        steps: training steps.
        samples: held-out points.
        probes: probes at each point.
        seed: random seed, the same for each flow.
    """
    print(
        f"torch {torch.__version__}, {platform.machine()} CPU; {blocks} blocks, {steps} steps, "
        f"{terms} terms, {samples} points with {probes} probes each\n"
    )
    print("| Lipschitz constant | at most | trained with `Exact()` | trained with the series |")
    print("| --- | --- | --- | --- |")
    series = PowerSeries(terms, num_probes=probes)
    for constant in lipschitz:
        cells = [f"{constant}", f"{2 * blocks * bound(constant, terms):.3g}"]
        for logdet in (Exact(), PowerSeries(terms)):
            pyro.set_rng_seed(seed)
            density = fitted(constant, logdet, blocks, steps)
            found = bias(density, rings(samples).double(), series)
            cells.append(f"{found.mean():.4f} ± {found.std() / samples**0.5:.4f}")
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    auto_cli(main)
