"""Measure inversion at Lipschitz constant 0.9: network evaluations, and time against normflows.

The fitted networks are multiplied by constants, so that the largest singular value of every
block's Jacobian at the solution is 0.9; the trained networks themselves are easier to invert.
Each block is inverted at its own output, which is known to float64. In a whole stack an error
would grow tenfold with each block, and the result would depend on the stack more than on the
solvers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyro_resflow.nn import Chain
from pyro_resflow.solvers import Anderson, FixedPoint, Solver
from pyro_resflow.transforms import Residual

from ..contenders import REDUCED, Gain
from ..findings import AtLeast, AtMost, Findings, Measurement, Row, ratio
from ..fitted import fitted_networks, held_out, largest_singular_value
from ..plan import Plan
from ..timing import alternating

LIPSCHITZ = 0.9
ACCURACY = 1e-6
# a residual r of a contraction implies an error of up to r / (1 - L)
SOLVERS: dict[str, Solver] = {
    kind.__name__: kind(tolerance=(1 - LIPSCHITZ) * ACCURACY) for kind in (Anderson, FixedPoint)
}
OURS = "pyro-resflow, Anderson"
THEIRS = "normflows, as it is"
HELD = "normflows, at a tolerance of 1e-6"


@dataclass(frozen=True)
class Place:
    """A block's network, and a point that its inverse has to recover.

    Args:
        net: our network of the block.
        gain: factor of the network.
        x: the point, float64.
        y: its image x + gain g(x), float64.
    """

    net: Chain
    gain: float
    x: Tensor
    y: Tensor

    def error(self, solution: Tensor) -> float:
        """The largest error of an entry, relative to the largest entry of its y or 1."""
        scale = self.y.abs().flatten(1).amax(1).clamp_min(1)
        return float(((solution - self.x).abs().flatten(1).amax(1) / scale).max())


def inverse(plan: Plan) -> Findings:
    """Count evaluations and time inversions."""
    places = places_along(fitted_networks(plan), held_out(plan))
    found = evaluations(places)
    found.add(sampling(plan, places))
    return found


@torch.no_grad()
def places_along(networks: Sequence[Chain], x: Tensor) -> list[Place]:
    """The blocks at the Lipschitz constant, and their inputs when the flow is applied to x."""
    places = []
    for net in networks:
        gain = LIPSCHITZ / largest_singular_value(net, x)
        y = x.double() + gain * copy.deepcopy(net).double()(x.double())
        places.append(Place(net, gain, x.double(), y))
        x = y.to(x.dtype)
    return places


def scaled(net: nn.Module, gain: float) -> nn.Sequential:
    """The network times its gain."""
    return nn.Sequential(net, Gain(gain))


@torch.no_grad()
def evaluations(places: Sequence[Place]) -> Findings:
    """Count the solvers' evaluations for each block, in float64, and measure their errors."""
    counts: dict[str, list[float]] = {name: [] for name in SOLVERS}
    errors = dict.fromkeys(SOLVERS, 0.0)
    for place in places:
        net = scaled(copy.deepcopy(place.net), place.gain).double()
        calls: list[object] = []
        net.register_forward_hook(lambda *_, calls=calls: calls.append(None))
        for name, solver in SOLVERS.items():
            calls.clear()
            solution = solver(net, place.y, place.y.dim() - 1)
            counts[name].append(float(len(calls)))
            errors[name] = max(errors[name], place.error(solution))
    group = f"network evaluations of the blocks' inverses at Lipschitz {LIPSCHITZ}"
    measured = [Measurement(group, name, tuple(c), "evaluations") for name, c in counts.items()]
    row = Row(
        f"evaluations for the inverse to {ACCURACY:g} at Lipschitz {LIPSCHITZ}: Anderson, share "
        "of Banach's",
        sum(counts["Anderson"]) / sum(counts["FixedPoint"]),
        AtMost(0.5),
        AtMost(0.3),
        note="all blocks added up; largest errors "
        + " and ".join(f"{errors[name]:.1e} ({name})" for name in SOLVERS),
    )
    return Findings([row], measured)


@torch.no_grad()
def sampling(plan: Plan, places: Sequence[Place]) -> Findings:
    """Time the inversion of all blocks, in float32, and measure the errors."""
    targets = [place.y.float() for place in places]
    # an inversion with a cache also computes the log-determinant
    blocks = [
        Residual(scaled(p.net, p.gain), event_dim=p.x.dim() - 1, cache_size=0) for p in places
    ]
    theirs = normflows_blocks(plan, places)
    tight = {"atol": ACCURACY**2, "rtol": ACCURACY**2}  # it compares the square of a step
    ways: dict[str, Callable[[], list[Tensor]]] = {
        OURS: lambda: [b.inv(y) for b, y in zip(blocks, targets, strict=True)],
        THEIRS: lambda: [b.inverse(y) for b, y in zip(theirs, targets, strict=True)],
        HELD: lambda: [
            b._inverse_fixed_point(y, **tight) for b, y in zip(theirs, targets, strict=True)
        ],
    }
    errors = {
        name: max(p.error(x) for p, x in zip(places, way(), strict=True))
        for name, way in ways.items()
    }
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
            f"sampling at Lipschitz {LIPSCHITZ}: times as fast as normflows at a tolerance of "
            f"{ACCURACY:g}",
            ratio(measured, HELD, OURS),
            note=f"largest errors {errors[OURS]:.1e} and {errors[HELD]:.1e}",
        ),
    ]
    note = (
        "The inverse of normflows stops when the square of every entry's step is below "
        "1e-5 (1 + |y|), that is for steps of up to 3e-3 (or more for larger y). In the second "
        "comparison it stops at steps of 1e-6. Its `sample` also computes 20 + Poisson(2) terms "
        "of the log-determinant; this benchmark leaves the log-determinant out for both "
        "libraries. The error is the largest difference of an entry from the x that was mapped "
        "forward in float64, relative to the largest entry of y or 1."
    )
    return Findings(rows, measured, [note])


def normflows_blocks(plan: Plan, places: Sequence[Place]) -> list[nn.Module]:
    """Build the same blocks in normflows."""
    import normflows as nf

    model = REDUCED.build(plan.images[0]).to(plan.device)
    model.load([place.net for place in places])
    pairs = zip(model.networks, places, strict=True)
    return [nf.flows.Residual(scaled(net, p.gain)).iresblock.eval() for net, p in pairs]
