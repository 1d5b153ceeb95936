"""Measure the variance of log-determinant estimates and of their gradients, at equal vjps.

The flow of 8x8 digits is small enough for whole Jacobians. The variance of the probes is a closed
form, and that of the roulette, at given probes, is a sum over its number of terms. Sampling would
miss rare and long draws of the roulette; the sum includes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_resflow.logdet import (
    Geometric,
    Krylov,
    NoTail,
    Poisson,
    PowerSeries,
    Rademacher,
    Tail,
)
from pyro_resflow.nn import Chain

from ...logdet_variance import (
    Block,
    digits,
    jacobians,
    networks_at,
    roulette_variance,
    summed_variance,
    trained_flow,
)
from ..findings import AtMost, Findings, Measurement, Row
from ..plan import DigitsFlow, Plan

CONVERGED = 20
"""Krylov steps after which increments are below rounding."""


@dataclass(frozen=True)
class Setting:
    """An estimator: its iterates, and its distribution of their number.

    Args:
        name: name in the tables.
        is_krylov: whether the iterates are Krylov's, or else partial sums of the power series.
        terms: products always taken.
        tail: distribution of the number of further products.
    """

    name: str
    is_krylov: bool
    terms: int
    tail: Tail


OURS = Setting("Krylov, 3 + Geometric(1/2)", True, 3, Geometric(0.5))
PUBLISHED = Setting("power series, 2 + Poisson(2)", False, 2, Poisson(2.0))
GEOMETRIC = Setting("power series, 2 + Geometric(2/3)", False, 2, Geometric(2 / 3))
VJPS = 4
"""Average number of products of each setting."""


def variance(plan: Plan) -> Findings:
    """Measure both variances on a fitted flow."""
    sizes = plan.digits
    train, held_out = digits()
    flow = trained_flow(train, sizes.blocks, sizes.width, sizes.steps).double()
    points = held_out[: sizes.samples].double()
    found = value_variances([*jacobians(flow, points)], points, sizes)
    found.add(gradient_variances([*networks_at(flow, points)], sizes))
    found.notes.append(
        f"Variances: {sizes.blocks} blocks of 64 dimensions fitted for {sizes.steps} steps, "
        f"{VJPS} vjps on average and Rademacher probes in each setting. The roulette's part is "
        f"exact at given probes, for up to {sizes.longest} further terms (with Poisson(2) it "
        "grows without limit with this number)."
    )
    return found


def value_variances(jacobian: Sequence[Tensor], points: Tensor, sizes: DigitsFlow) -> Findings:
    """Variance of the log-determinant, summed over the blocks."""
    blocks = [Block(j, Rademacher().draw(points, sizes.probes)) for j in jacobian]
    probes = sum(b.probe_variance(gaussian=False).mean().item() for b in blocks)
    steps = 2 + sizes.longest
    series = [[b.value(PowerSeries(n)) for n in range(1, steps + 1)] for b in blocks]
    krylov = [
        [b.value(Krylov(n, tail=NoTail())) for n in range(1, min(steps, CONVERGED) + 1)]
        for b in blocks
    ]
    parts = {
        s: summed_variance(
            krylov if s.is_krylov else series, blocks, s.terms, s.tail, sizes.longest
        )
        for s in (OURS, PUBLISHED, GEOMETRIC)
    }
    return compared("log-determinant", "nats^2", probes, parts, AtMost(0.01))


def gradient_variances(places: Sequence[tuple[Chain, Tensor]], sizes: DigitsFlow) -> Findings:
    """Variance of the gradient of the batch's mean log-determinant, over all parameters."""
    probes = 0.0
    parts = dict.fromkeys((OURS, PUBLISHED, GEOMETRIC), 0.0)
    for net, point in places:
        limits = []
        for _ in range(sizes.gradient_probes):
            probe = Rademacher().draw(point, 1)
            krylov = gradients(net, point, probe, krylov_adjoints(net, point, probe))
            series = gradients(net, point, probe, power_adjoints(net, point, probe, sizes.longest))
            limits.append(krylov[-1])
            for s in parts:
                partial = krylov if s.is_krylov else series
                found = roulette_variance(partial, krylov[-1], s.terms, s.tail, sizes.longest)
                parts[s] += found.sum().item() / sizes.gradient_probes
        probes += torch.stack(limits).var(0).sum().item()
    return compared("gradient", "squared gradient", probes, parts, None)


@torch.no_grad()
def krylov_adjoints(net: Chain, x: Tensor, probe: Tensor) -> list[Tensor]:
    """w_1, w_2, ... until convergence, each ``(1, N, D)``."""
    vjp = net.linearize(x).vjp
    counts = range(1, CONVERGED + 1)
    return [Krylov(n, tail=NoTail()).estimate(vjp, probe).adjoint for n in counts]


@torch.no_grad()
def power_adjoints(net: Chain, x: Tensor, probe: Tensor, longest: int) -> list[Tensor]:
    """The partial sums of w by powers of the Jacobian, each ``(1, N, D)``."""
    vjp = net.linearize(x).vjp
    return [PowerSeries(n).estimate(vjp, probe).adjoint for n in range(1, 3 + longest)]


def gradients(net: Chain, x: Tensor, probe: Tensor, adjoints: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of the mean of w^T J e for each adjoint w, as one vector."""
    parameters = [p for p in net.parameters() if p.requires_grad]
    _, tangent = net.dual(x, probe)
    found = []
    for adjoint in adjoints:
        cotangent = adjoint / len(x)
        parts = torch.autograd.grad(
            tangent, parameters, cotangent, retain_graph=True, materialize_grads=True
        )
        found.append(torch.cat([part.flatten() for part in parts]))
    return found


def compared(
    quantity: str, unit: str, probes: float, parts: Mapping[Setting, float], share: AtMost | None
) -> Findings:
    """Rows for the truncation's share, and for the ratio of the total to other settings."""
    rows = [
        Row(
            f"variance of the {quantity} at {VJPS} vjps: truncation's share, {OURS.name}",
            parts[OURS] / (probes + parts[OURS]),
            share,
            note="; ".join(
                f"{s.name}: {part / (probes + part):.2g}" for s, part in parts.items() if s != OURS
            ),
        )
    ]
    for other in (PUBLISHED, GEOMETRIC):
        rows.append(
            Row(
                f"variance of the {quantity} at {VJPS} vjps: share of that of {other.name}",
                (probes + parts[OURS]) / (probes + parts[other]),
                AtMost(1) if share is None else None,
                note="probes included",
            )
        )
    group = f"variance of the {quantity}"
    measured = [Measurement(group, "of the probes", (probes,), unit)]
    measured += [
        Measurement(group, f"of truncation: {s.name}", (part,), unit) for s, part in parts.items()
    ]
    return Findings(rows, measured)
