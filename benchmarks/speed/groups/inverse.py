"""Inversion at Lipschitz constant 0.9: network evaluations, and time against normflows.

The fitted networks are multiplied by constants, so that the largest singular value of every
block's Jacobian at the solution is 0.9: as contractive as trained ones are, they would be easy.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pyro_resflow.nn import Chain
from pyro_resflow.solvers import Anderson, FixedPoint, Solver
from pyro_resflow.transforms import Compose, Residual

from ..contenders import REDUCED, Gain
from ..findings import AtLeast, AtMost, Findings, Measurement, Row, ratio
from ..fitted import fitted_networks, held_out, largest_singular_value
from ..plan import Plan
from ..timing import alternating

LIPSCHITZ = 0.9
ACCURACY = 1e-6
# a residual r of a contraction means an error of up to r / (1 - L)
SOLVERS: dict[str, Solver] = {
    kind.__name__: kind(tolerance=(1 - LIPSCHITZ) * ACCURACY) for kind in (Anderson, FixedPoint)
}
OURS = "pyro-resflow, Anderson"
THEIRS = "normflows, as it is"
HELD = "normflows, held to 1e-6"


def inverse(plan: Plan) -> Findings:
    """Count evaluations and time inversions."""
    x = held_out(plan)
    networks = fitted_networks(plan)
    gains = gains_along(networks, x)
    found = evaluations(scaled(networks, gains), x)
    found.add(sampling(plan, networks, gains, x))
    return found


@torch.no_grad()
def gains_along(networks: Sequence[Chain], x: Tensor) -> list[float]:
    """What brings each Jacobian to the Lipschitz constant at the points that x takes there."""
    gains = []
    for net in networks:
        gains.append(LIPSCHITZ / largest_singular_value(net, x))
        x = x + gains[-1] * net(x)
    return gains


def scaled(networks: Sequence[nn.Module], gains: Sequence[float]) -> list[nn.Module]:
    """The networks, each multiplied by its gain."""
    pairs = zip(networks, gains, strict=True)
    return [nn.Sequential(net, Gain(gain)) for net, gain in pairs]


@torch.no_grad()
def evaluations(networks: Sequence[nn.Module], x: Tensor) -> Findings:
    """Evaluations that the solvers spend on each block, in float64, and the errors they reach."""
    counts: dict[str, list[float]] = {name: [] for name in SOLVERS}
    errors = dict.fromkeys(SOLVERS, 0.0)
    for net in copy.deepcopy(list(networks)):
        net.double()
        calls: list[object] = []
        net.register_forward_hook(lambda *_, calls=calls: calls.append(None))
        point = x.double()
        y = point + net(point)
        for name, solver in SOLVERS.items():
            calls.clear()
            solution = solver(net, y, point.dim() - 1)
            counts[name].append(float(len(calls)))
            errors[name] = max(errors[name], float((solution - point).abs().max()))
        x = x + net(x.double()).to(x.dtype)
    group = f"network evaluations of the blocks' inverses at Lipschitz {LIPSCHITZ}"
    measured = [Measurement(group, name, tuple(c), "evaluations") for name, c in counts.items()]
    row = Row(
        f"evaluations for the inverse to {ACCURACY:g} at Lipschitz {LIPSCHITZ}: Anderson, share "
        "of Banach's",
        sum(counts["Anderson"]) / sum(counts["FixedPoint"]),
        AtMost(0.5),
        AtMost(0.3),
        note="largest errors "
        + " and ".join(f"{errors[name]:.1e} ({name})" for name in SOLVERS)
        + "; all blocks added up",
    )
    return Findings([row], measured)


@torch.no_grad()
def sampling(plan: Plan, networks: list[Chain], gains: list[float], x: Tensor) -> Findings:
    """Time to invert all blocks, in float32, and the error of each way."""
    dimensions = x.dim() - 1
    ours = Compose([Residual(n, event_dim=dimensions) for n in scaled(networks, gains)])
    theirs = normflows_blocks(plan, networks, gains)
    z = images_of(ours, x)
    tolerance = ACCURACY**2  # it compares the square of a step

    def banach(y: Tensor, **tolerances: float) -> Tensor:
        for block in reversed(theirs):
            y = block._inverse_fixed_point(y, **tolerances)
        return y

    bare = ours.with_cache(0)  # an inversion that is cached computes the log-determinant as well
    ways: dict[str, Callable[[], Tensor]] = {
        OURS: lambda: bare.inv(z),
        THEIRS: lambda: banach(z),
        HELD: lambda: banach(z, atol=tolerance, rtol=tolerance),
    }
    errors = {name: float((way() - x).abs().max()) for name, way in ways.items()}
    group = f"inverse of all blocks at Lipschitz {LIPSCHITZ}, without log-determinant"
    measured = alternating(group, ways, plan.repeats)
    rows = [
        Row(
            f"sampling at Lipschitz {LIPSCHITZ}: times as fast as normflows, which stops earlier",
            ratio(measured, THEIRS, OURS),
            AtLeast(2),
            AtLeast(4),
            note=f"largest errors {errors[OURS]:.1e} and {errors[THEIRS]:.1e}",
        ),
        Row(
            f"sampling at Lipschitz {LIPSCHITZ}: times as fast as normflows held to {ACCURACY:g}",
            ratio(measured, HELD, OURS),
            note=f"largest errors {errors[OURS]:.1e} and {errors[HELD]:.1e}",
        ),
    ]
    note = (
        "The inverse of normflows stops when the square of an entry's step is below "
        "1e-5 (1 + |y|). Its own `sample` computes 20 + Poisson(2) terms of the log-determinant "
        "on top, which is left out here on both sides. Errors are the largest of an entry, "
        "against the x that was mapped forward in float64."
    )
    return Findings(rows, measured, [note])


def images_of(flow: Compose, x: Tensor) -> Tensor:
    """The flow at x, computed in float64."""
    return copy.deepcopy(flow).double()(x.double()).to(x.dtype)


def normflows_blocks(plan: Plan, networks: list[Chain], gains: list[float]) -> list[nn.Module]:
    """The same blocks in normflows, the one that sees the data first in front."""
    import normflows as nf

    model = REDUCED.build(plan.images[0]).to(plan.device)
    model.load(networks)
    nets = scaled(model.networks, gains)
    return [nf.flows.Residual(net).iresblock.eval() for net in nets]
