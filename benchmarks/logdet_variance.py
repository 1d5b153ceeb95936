"""Measure the errors of the log-determinant estimators on a flow trained for a short time.

The flow is fitted to the 8x8 digits of scikit-learn. Then every estimator is compared with the
whole Jacobian of every block, in float64 and at held-out digits: its truncation error, the
variance of its Russian roulette, and the variance of its probes. The program prints Markdown
tables.

    python -m benchmarks.logdet_variance
"""

from __future__ import annotations

import math
import platform
from collections.abc import Iterator, Sequence

import pyro
import pyro.distributions as dist
import torch
from jsonargparse import auto_cli
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from sklearn.datasets import load_digits
from torch import Tensor

from pyro_resflow import residual_flow
from pyro_resflow.logdet import (
    AdaptiveKrylov,
    Geometric,
    Krylov,
    NoTail,
    Poisson,
    PowerSeries,
    Rademacher,
    StochasticEstimator,
    Tail,
)
from pyro_resflow.nn import Chain
from pyro_resflow.transforms import Inverse, Logit, Residual


def digits() -> tuple[Tensor, Tensor]:
    """Training and held-out digits, dequantized and on the real line, shape ``(N, 64)``."""
    grey = torch.tensor(load_digits().data, dtype=torch.get_default_dtype())
    grey = grey[torch.randperm(len(grey))]
    points = Logit(0.05, event_dim=1)((grey + torch.rand_like(grey)) / 17)
    held_out = len(points) // 5
    return points[held_out:], points[:held_out]


def trained_flow(data: Tensor, blocks: int, width: int, steps: int) -> Inverse:
    """A residual flow fitted to the data by SVI."""
    flow = residual_flow(64, blocks, [width, width], fast="density")
    base = dist.Normal(torch.zeros(64), torch.ones(64)).to_event(1)
    batch_size = 128

    @poutine.scale(scale=1 / batch_size)
    def model(batch: Tensor) -> None:
        pyro.module("flow", flow)
        with pyro.plate("data", len(batch)):
            pyro.sample("x", dist.TransformedDistribution(base, [flow]), obs=batch)

    svi = SVI(model, lambda batch: None, Adam({"lr": 3e-3}), Trace_ELBO())
    for _ in range(steps):
        svi.step(data[torch.randint(len(data), (batch_size,))])
    return flow


@torch.no_grad()
def networks_at(flow: Inverse, x: Tensor) -> Iterator[tuple[Chain, Tensor]]:
    """The network of each residual block, and its input when the flow is applied to x, (N, D)."""
    for part in flow.inv.parts:
        if isinstance(part, Residual):
            yield part.net, x
        x = part(x)


@torch.no_grad()
def jacobians(flow: Inverse, x: Tensor) -> Iterator[Tensor]:
    """The Jacobian of g of each residual block at its input for x, (N, D, D)."""
    units = torch.eye(x.shape[-1], dtype=x.dtype)[:, None].expand(-1, *x.shape)
    for net, point in networks_at(flow, x):
        yield net.linearize(point).vjp(units).transpose(0, 1)


def log_one_plus(jacobian: Tensor) -> Tensor:
    """log(I + J) by its power series, summed until it converges."""
    total, power = torch.zeros_like(jacobian), -torch.eye(jacobian.shape[-1]).to(jacobian)
    for k in range(1, 1000):
        power = -power @ jacobian
        total += power / k
        if power.abs().max() < 1e-12:
            break
    return total


class Block:
    """The Jacobians of one block with probes, and the estimators' values for them.

    Args:
        jacobian: shape ``(N, D, D)``.
        probes: shape ``(S, N, D)``.
    """

    def __init__(self, jacobian: Tensor, probes: Tensor) -> None:
        self.jacobian, self.probes = jacobian, probes
        self.logarithm = log_one_plus(jacobian)
        self.limit = torch.einsum("sni,nij,snj->sn", probes, self.logarithm, probes)
        self.products = 0

    def vjp(self, w: Tensor) -> Tensor:
        """Compute J^T w, and count the product."""
        self.products += 1
        return torch.einsum("nij,sni->snj", self.jacobian, w)

    def value(self, estimator: StochasticEstimator) -> Tensor:
        """The estimator's value for each probe, shape ``(S, N)``."""
        return estimator.estimate(self.vjp, self.probes).value

    def truncation_error(self, estimator: StochasticEstimator) -> Tensor:
        """The error of the truncation for each probe, shape ``(S, N)``."""
        return self.value(estimator) - self.limit

    def probe_variance(self, *, gaussian: bool) -> Tensor:
        """Variance of e^T log(I+J) e over the probes e, shape ``(N,)``: closed forms."""
        symmetric = (self.logarithm + self.logarithm.mT) / 2
        if not gaussian:
            symmetric = symmetric - torch.diag_embed(symmetric.diagonal(dim1=-2, dim2=-1))
        return 2 * symmetric.square().sum((-2, -1))


def roulette_variance(
    partial: Sequence[Tensor], limit: Tensor, terms: int, tail: Tail, longest: int
) -> Tensor:
    """Mean square error of the roulette at a given probe, summed over N up to the longest.

    Args:
        partial: q_1, q_2, ...: the value after each product.
        limit: the limit of these values.
        terms: products always taken.
        tail: distribution of the number N of further products.
        longest: the largest N in the sum.
    """
    value = partial[terms - 1]
    total = torch.zeros_like(value)
    for n in range(min(longest, len(partial) - terms) + 1):
        if n > 0:
            value = value + (partial[terms + n - 1] - partial[terms + n - 2]) / tail.survival(n)
        total += (tail.survival(n) - tail.survival(n + 1)) * (value - limit).square()
    return total


def summed_variance(
    partial: Sequence[Sequence[Tensor]],
    blocks: Sequence[Block],
    terms: int,
    tail: Tail,
    longest: int,
) -> float:
    """The roulette's variance, averaged over probes and samples and summed over the blocks."""
    pairs = zip(partial, blocks, strict=True)
    found = [roulette_variance(p, b.limit, terms, tail, longest) for p, b in pairs]
    return sum(v.mean().item() for v in found)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table."""
    print()
    for row in [header, ["---"] * len(header), *rows]:
        print(f"| {' | '.join(row)} |")


def rms(errors: Sequence[Tensor]) -> float:
    """Root mean square over probes and samples of the sum of the blocks' errors."""
    return torch.stack(list(errors)).sum(0).square().mean().sqrt().item()


def truncation_table(blocks: Sequence[Block], longest: int) -> None:
    """Print the RMS error of the flow's log-density after n products per block."""
    counts = range(1, longest + 1)
    rows = []
    for name, kind in {"power series": PowerSeries, "Krylov": Krylov}.items():
        options = {} if kind is PowerSeries else {"tail": NoTail()}
        errors = [rms([b.truncation_error(kind(n, **options)) for b in blocks]) for n in counts]
        rows.append([name, *(f"{error:.2g}" for error in errors)])
    table(["vjps per block", *map(str, counts)], rows)


def roulette_table(blocks: Sequence[Block], longest: Sequence[int] = (8, 16, 32)) -> None:
    """Print the variance of the roulette, summed over the blocks, with N up to several limits."""
    series = [[b.value(PowerSeries(n)) for n in range(1, 3 + longest[-1])] for b in blocks]
    # beyond 20 products the increments are below rounding
    krylov = [[b.value(Krylov(n, tail=NoTail())) for n in range(1, 21)] for b in blocks]
    settings = {
        "power series, 2 + Poisson(2), as published": (series, 2, Poisson(2.0), 4),
        "power series, 2 + Geometric(2/3)": (series, 2, Geometric(2 / 3), 4),
        "power series, 2 + Geometric(1/2): `RussianRoulette()`": (series, 2, Geometric(0.5), 3),
        "Krylov, 2 + Geometric(1/3): `Krylov()`": (krylov, 2, Geometric(1 / 3), 2.5),
        "Krylov, 2 + Geometric(1/2)": (krylov, 2, Geometric(0.5), 3),
        "Krylov, 3 + Geometric(1/3): `Krylov(3)`": (krylov, 3, Geometric(1 / 3), 3.5),
    }
    rows = []
    for name, (partial, terms, tail, products) in settings.items():
        row = [name, str(products)]
        for n in longest:
            row.append(f"{summed_variance(partial, blocks, terms, tail, n):.2g}")
        rows.append(row)
    rows.append(adaptive_row(blocks))
    table(["setting", "vjps on average", *(f"N up to {n}" for n in longest)], rows)


def adaptive_row(blocks: Sequence[Block], draws: int = 20) -> list[str]:
    """The row of the adaptive estimator, averaged over draws of its roulette."""
    variance, products = 0.0, 0
    for block in blocks:
        block.products = 0
        errors = [block.truncation_error(AdaptiveKrylov()) for _ in range(draws)]
        variance += torch.stack(errors).square().mean().item()
        products += block.products
    average = products / (draws * len(blocks))
    return ["`AdaptiveKrylov()`", f"{average:.1f}", "", "", f"{variance:.2g}"]


def probe_table(blocks: Sequence[Block]) -> None:
    """Print the variance of one probe, summed over the blocks."""
    rows = []
    for name, gaussian in {"Rademacher": False, "Gaussian": True}.items():
        variance = sum(b.probe_variance(gaussian=gaussian).mean().item() for b in blocks)
        rows.append([name, f"{variance:.3g}", f"{math.sqrt(variance):.2g}"])
    table(["probe", "variance", "standard deviation"], rows)


def main(
    blocks: int = 10,
    width: int = 128,
    steps: int = 500,
    samples: int = 50,
    probes: int = 20,
    seed: int = 0,
) -> None:
    """Measure the estimators on a flow of the 8x8 digits, in nats of its log-density.

    Args:
        blocks: residual blocks of the flow.
        width: size of both hidden layers of each.
        steps: training steps.
        samples: held-out digits.
        probes: probes for each digit.
        seed: random seed.
    """
    pyro.set_rng_seed(seed)
    train, held_out = digits()
    flow = trained_flow(train, blocks, width, steps).double()
    points = held_out[:samples].double()
    measured = []
    for jacobian in jacobians(flow, points):
        drawn = Rademacher().draw(points, probes)
        measured.append(Block(jacobian, drawn))
    norms = [torch.linalg.matrix_norm(b.jacobian, 2).mean().item() for b in measured]
    print(
        f"torch {torch.__version__}, {platform.machine()} CPU; {blocks} blocks, {steps} steps; "
        f"the largest singular value of J is on average {min(norms):.2f} to {max(norms):.2f}"
    )
    truncation_table(measured, longest=8)
    roulette_table(measured)
    probe_table(measured)


if __name__ == "__main__":
    auto_cli(main)
