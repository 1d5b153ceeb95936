"""Measure how the cost of a training step grows with depth, batch, width and image size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ..contenders import KEEP, RECOMPUTE, REDUCED
from ..findings import AtMost, Findings, Measurement, Row
from ..plan import Plan
from ..timing import alternating
from ..workloads import Workload

CONTENDERS = (KEEP, RECOMPUTE, REDUCED)
LINEAR = ("depth", "batch")


def scaling(plan: Plan) -> Findings:
    """Time training steps along every axis."""
    found = Findings()
    for axis, values in plan.scales.items():
        measured = [m for value in values for m in times_at(axis, value, plan)]
        found.measurements += measured
        for contender in CONTENDERS:
            curve = [m for m in measured if m.contender == contender.name]
            has_target = axis in LINEAR and contender is not REDUCED
            found.rows.append(
                Row(
                    f"cost against {axis}: exponent, {contender.name}",
                    last_exponent(curve),
                    AtMost(1.1) if has_target else None,
                    note=f"from {curve[-2].at:g} to {curve[-1].at:g}; linear is 1",
                )
            )
    return found


def times_at(axis: str, value: int, plan: Plan) -> list[Measurement]:
    """Time all contenders at one point of one axis."""
    workload = along(plan.scaled, axis, value)
    x = workload.data().to(plan.device)
    steps = {c.name: c.training(c.build(workload).to(plan.device), x) for c in CONTENDERS}
    return alternating(f"training step against {axis}", steps, plan.repeats, at=value)


def along(workload: Workload, axis: str, value: int) -> Workload:
    """The workload with another value on one axis."""
    changes: dict[str, dict[str, object]] = {
        "depth": {"blocks": value},
        "batch": {"batch": value},
        "width": {"hidden": (value,) * len(workload.hidden)},
        "image size": {"event_shape": (workload.event_shape[0], value, value)},
    }
    return replace(workload, **changes[axis])


def last_exponent(curve: Sequence[Measurement]) -> float:
    """The exponent p of cost ~ position^p between the last two points."""
    before, last = curve[-2:]
    return math.log(last.median / before.median) / math.log((last.at or 0) / (before.at or 1))
