"""Time training steps on images, of all libraries and of a plain residual network."""

from __future__ import annotations

from collections.abc import Sequence

from ..contenders import KEEP, PLAIN, RECOMPUTE, REDUCED, TORCHFLOWS, UNREDUCED
from ..equality import equal_steps
from ..findings import AtLeast, AtMost, Findings, Measurement, Row, ratio
from ..plan import Plan
from ..timing import alternating
from ..workloads import Workload

CONTENDERS = (KEEP, RECOMPUTE, REDUCED, UNREDUCED, TORCHFLOWS, PLAIN)

NOTES = [
    "A training step consists of the density loss, its backward pass, a step of Adam, and the "
    "library's update of its norms. normflows runs `update_lipschitz`, a power iteration to the "
    "reference implementation's tolerance of 1e-3. Our layers measure their norms in the next "
    "step, by Lanczos steps to 1e-5. torchflows uses our networks, because it has no such "
    "convolutions. The plain residual network runs only the forward and the backward pass; its "
    "norms are fixed, and each activation is a single fused operation.",
    "Terms of the log-determinant on average: `Krylov()` 2 + Geometric(1/3), that is 2.5; "
    "normflows 2 + Poisson(2), that is 4, as published; torchflows 2, the k-th of which it "
    "divides by k once more, so that its estimate is not the log-determinant.",
    "Before a run, all networks are checked to be the same function, to 1e-5. The singular "
    "vectors of the norms are copied with the weights; afterwards each library updates its own.",
]


def training(plan: Plan) -> Findings:
    """Time a training step of every contender on every image workload."""
    found = Findings(notes=NOTES)
    for workload in plan.images:
        measured = training_times(workload, plan)
        found.measurements += measured
        found.rows += rows(workload, measured)
    return found


def training_times(workload: Workload, plan: Plan) -> list[Measurement]:
    """Time all contenders on one workload."""
    steps = equal_steps(CONTENDERS, workload, plan.device)
    return alternating(f"training step, {workload.name}", steps, plan.repeats)


def rows(workload: Workload, measured: Sequence[Measurement]) -> list[Row]:
    """The figures of one workload."""
    step = f"training step, {workload.name}"

    def faster(ours: str, theirs: str) -> float:
        return ratio(measured, theirs, ours)

    found = [
        Row(
            f"{step}: keep, times as fast as normflows with reduce_memory",
            faster(KEEP.name, REDUCED.name),
            AtLeast(1.8),
            AtLeast(2.5),
        ),
        Row(
            f"{step}: recompute, times as fast as normflows with reduce_memory",
            faster(RECOMPUTE.name, REDUCED.name),
            AtLeast(1.5),
            AtLeast(2),
        ),
        Row(
            f"{step}: keep, in forward and backward passes of the plain network",
            ratio(measured, KEEP.name, PLAIN.name),
            AtMost(3),
            AtMost(2.4),
        ),
        Row(
            f"{step}: recompute, in forward and backward passes of the plain network",
            ratio(measured, RECOMPUTE.name, PLAIN.name),
            AtMost(3.6),
            AtMost(2.4),
        ),
    ]
    for ours in (KEEP, RECOMPUTE):
        mode = ours.name.partition(", ")[2]
        for theirs in (UNREDUCED, TORCHFLOWS):
            figure = f"{step}: {mode}, times as fast as {theirs.name}"
            found.append(Row(figure, faster(ours.name, theirs.name)))
    return found
