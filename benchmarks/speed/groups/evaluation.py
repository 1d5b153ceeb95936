"""Measure held-out log-densities with a small truncation error, of fitted networks."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor

from pyro_resflow.logdet import (
    AdaptiveKrylov,
    Krylov,
    NoTail,
    Poisson,
    Rademacher,
    RussianRoulette,
    StochasticEstimator,
)
from pyro_resflow.nn import Chain

from ..contenders import REDUCED, Contender, Ours
from ..equality import check_same_function
from ..findings import AtLeast, AtMost, Findings, Measurement, Row, ratio
from ..fitted import block_inputs, fitted_networks, held_out, largest_singular_value
from ..plan import Plan
from ..timing import alternating

TOLERANCE = 1e-3
ADAPTIVE = Ours("pyro-resflow, AdaptiveKrylov(1e-3)", AdaptiveKrylov(TOLERANCE))
THEIRS = replace(REDUCED, name="normflows, eval mode")
ESTIMATORS: dict[str, StochasticEstimator] = {
    ADAPTIVE.name: AdaptiveKrylov(TOLERANCE),
    THEIRS.name: RussianRoulette(20, tail=Poisson(2)),
}


def evaluation(plan: Plan) -> Findings:
    """Time held-out log-densities, and measure their truncation errors."""
    networks = fitted_networks(plan)
    x = held_out(plan)
    times = evaluation_times(plan, networks, x)
    errors = truncation_errors(networks, x)
    ours, theirs = errors
    inputs = block_inputs(networks, x)
    norms = [largest_singular_value(n, at) for n, at in zip(networks, inputs, strict=True)]
    rows = [
        Row(
            "log_prob of held-out data: times as fast as normflows in eval mode",
            ratio(times, THEIRS.name, ADAPTIVE.name),
            AtLeast(6),
            AtLeast(12),
            note=f"{plan.images[0].name}, {len(x)} samples",
        ),
        Row(
            "log_prob of held-out data: truncation error of the worst block, nats (rms)",
            max(ours.values),
            AtMost(TOLERANCE),
            note=f"normflows' 20 + Poisson(2) terms: {max(theirs.values):.1e}",
        ),
    ]
    note = (
        f"Fitted networks: {plan.fitting_steps} steps on enlarged digits; the largest singular "
        f"value of a block's Jacobian at held-out points is {min(norms):.2f} to {max(norms):.2f}, "
        "depending on the block. Truncation errors are differences to 30 Krylov steps with the "
        "same probe, in float64; they include the roulette."
    )
    return Findings(rows, [*times, *errors], [note])


def evaluation_times(plan: Plan, networks: list[Chain], x: Tensor) -> list[Measurement]:
    """The time of log_prob without gradients, in evaluation mode."""
    contenders: list[Contender] = [ADAPTIVE, THEIRS]
    models = {}
    for contender in contenders:
        models[contender.name] = contender.build(plan.images[0]).to(plan.device)
        models[contender.name].load(networks)
        models[contender.name].eval()
        check_same_function(contender.name, models[contender.name].networks, networks, x)

    def scoring(name: str) -> None:
        with torch.no_grad():
            models[name].log_prob(x)

    runs = {name: lambda name=name: scoring(name) for name in models}
    return alternating("log_prob of held-out data", runs, plan.repeats)


@torch.no_grad()
def truncation_errors(networks: list[Chain], x: Tensor) -> list[Measurement]:
    """The truncation error of each estimator for each block, a root mean square over samples."""
    exact = Krylov(30, tail=NoTail())
    errors: dict[str, list[float]] = {name: [] for name in ESTIMATORS}
    for net, point in zip(networks, block_inputs(networks, x), strict=True):
        vjp = copy.deepcopy(net).double().linearize(point.double()).vjp
        probes = Rademacher().draw(point.double(), 1)
        limit = exact.estimate(vjp, probes).value
        for name, estimator in ESTIMATORS.items():
            error = estimator.estimate(vjp, probes).value - limit
            errors[name].append(float(error.square().mean().sqrt()))
    group = "truncation error of the blocks (rms)"
    return [Measurement(group, name, tuple(values), "nats") for name, values in errors.items()]
