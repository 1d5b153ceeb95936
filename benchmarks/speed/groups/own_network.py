"""Time training steps of residual blocks with a user's own ``nn.Sequential``."""

from __future__ import annotations

from ..contenders import PLAIN, RECOMPUTE, REDUCED
from ..equality import equal_steps
from ..findings import AtLeast, AtMost, Findings, Row, ratio
from ..own_network import OWN_NETWORK, UnitGains
from ..plan import Plan
from ..timing import alternating

CONTENDERS = (OWN_NETWORK, RECOMPUTE, REDUCED, PLAIN)

BLOCKS = 4
"""Enough blocks that the cost of everything else in a step is small."""

NOTES = [
    "The own network is an `nn.Sequential` of `SiLU` and `Conv2d` in `Residual` with the default "
    "estimator, evaluated in stages. Nothing measures its norms. The others compute the same.",
]


def own_network(plan: Plan) -> Findings:
    """Time a training step on the widest image workload."""
    workload = UnitGains(**{**vars(plan.images[-1]), "blocks": BLOCKS})
    steps = equal_steps(CONTENDERS, workload, plan.device)
    step = f"training step of an own network, {workload.name}, {BLOCKS} blocks"
    measured = alternating(step, steps, plan.repeats)
    rows = [
        Row(
            f"{step}: times as fast as normflows with reduce_memory",
            ratio(measured, REDUCED.name, OWN_NETWORK.name),
            AtLeast(1.9),
        ),
        Row(
            f"{step}: in forward and backward passes of the plain network",
            ratio(measured, OWN_NETWORK.name, PLAIN.name),
            AtMost(3.3),
        ),
    ]
    return Findings(rows, measured, NOTES)
