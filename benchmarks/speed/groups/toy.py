"""Measure a two-dimensional toy of a hundred small perceptrons, dominated by Python's overhead."""

from __future__ import annotations

from ..contenders import (
    BRUTE_FORCE,
    DEFAULT,
    EXACT,
    KEEP,
    RECOMPUTE,
    REDUCED,
    TORCHFLOWS,
    UNREDUCED,
)
from ..equality import equal_steps
from ..findings import Findings, Measurement, Row, ratio
from ..plan import Plan
from ..timing import alternating

CONTENDERS = (DEFAULT, KEEP, RECOMPUTE, EXACT, REDUCED, UNREDUCED, BRUTE_FORCE, TORCHFLOWS)


def toy(plan: Plan) -> Findings:
    """Training steps per second of every contender."""
    workload = plan.toy
    steps = equal_steps(CONTENDERS, workload, plan.device)
    group = f"training step, {workload.name}: {workload.blocks} blocks, batch {workload.batch}"
    times = alternating(group, steps, plan.repeats)
    rates = [
        Measurement(m.group, m.contender, tuple(1 / t for t in m.values), "steps/s") for m in times
    ]
    rows = [
        Row(
            f"{workload.name}: {ours.name.partition(', ')[2]}, times as fast as {theirs.name}",
            ratio(times, theirs.name, ours.name),
        )
        for ours in (DEFAULT, EXACT, KEEP)
        for theirs in (REDUCED, UNREDUCED, BRUTE_FORCE, TORCHFLOWS)
    ]
    return Findings(rows, rates)
