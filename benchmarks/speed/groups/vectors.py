"""Time flows of vectors: training steps, and sampling and scoring without gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from benchmarks.operations import SIZES, Size, runs

from ..findings import AtLeast, AtMost, Findings, Measurement, Row, ratio
from ..machine import ROOT
from ..other_checkout import OtherCheckout
from ..plan import Plan
from ..timing import sampled, seconds
from ..vector_flows import (
    NORMFLOWS,
    OURS,
    PLAIN_VECTORS,
    VECTOR_CONTENDERS,
    parameters_of,
)

STEP_OF_VECTORS = "step of vectors"
"""Beginning of the names of the groups of training steps."""

MOST_PLAIN_STEPS = {
    SIZES[0]: (AtMost(5), AtMost(3)),
    SIZES[1]: (AtMost(4.5), AtMost(2.5)),
    SIZES[2]: (AtMost(6), AtMost(3)),
    SIZES[3]: (AtMost(3.5), AtMost(2.5)),
}
"""Targets of a training step: required and desired."""

LARGEST_DIM = 10
"""Flows of up to this size are also timed without gradients: in larger ones a flow that takes one
pass to sample and one to score is compared with iterations and passes for each dimension."""

NOTES = [
    "With `--against` this checkout and the other one run in processes of their own, under equal "
    "conditions: how often the C library returns memory depends on what a process did before.",
    "A step of vectors consists of the loss, its backward pass, a step of Adam, and the library's "
    "update of its norms; the plain network has the layers of our blocks and a squared error. "
    "Ours and normflows have the same layers, blocks and ActNorms; normflows takes 2 + Poisson(2) "
    "terms. The flows of zuko and Pyro have 3 transforms. Their networks have two hidden layers, "
    "in Pyro's autoregressive transforms one, of the width that comes closest to our number of "
    "parameters.",
    "Every flow of vectors takes one pass in the direction that is trained. Samples and "
    "log-densities without gradients are those of flows after 20 steps. In the other direction "
    "ours iterate, and autoregressive transforms take a pass for each dimension.",
]

Clock = Callable[[], float]


def vectors(plan: Plan) -> Findings:
    """Time all flows of vectors, also those of another checkout if the plan has one."""
    found = Findings(notes=[*NOTES])
    others = [] if plan.against is None else [OtherCheckout(ROOT), OtherCheckout(plan.against)]
    try:
        for size in plan.vectors:
            found.add(training(plan, size, others))
        for size in plan.vectors:
            if size.dim <= LARGEST_DIM:
                for fast in ("density", "sampling"):
                    found.add(without_gradients(plan, size._replace(fast=fast), others))
    finally:
        for other in others:
            other.close()
    return found


def training(plan: Plan, size: Size, others: Sequence[OtherCheckout]) -> Findings:
    """Time a training step of every flow.

    Args:
        plan: the plan.
        size: the size of the flows.
        others: no checkout, or this one and another one, both in processes of their own.
    """
    clocks: dict[str, Clock] = {}
    parameters = []
    for contender in VECTOR_CONTENDERS:
        density = contender.build(size)
        parameters.append(f"{contender.name} {parameters_of(density)}")
        step = contender.training(size, density)
        clocks[contender.name] = partial(seconds, step, plan.vector_steps)
    for other in others:
        clocks[other.name] = other.clock(size, "training", plan.vector_steps)
    group = f"{STEP_OF_VECTORS}, {text(size)}"
    measured = sampled(group, clocks, plan.repeats, "s")
    must, aim = MOST_PLAIN_STEPS.get(size, (None, None))
    rows = [
        Row(
            f"{group}: {name}, in steps of the plain network",
            ratio(measured, name, PLAIN_VECTORS.name),
            *((must, aim) if name == OURS.name else ()),
        )
        for name in clocks
        if name != PLAIN_VECTORS.name
    ]
    least = AtLeast(3 if size != SIZES[3] else 2) if size in SIZES else None
    rows += faster(group, measured, others, least)
    note = f"Parameters at {text(size)}: {'; '.join(parameters)}."
    return Findings(rows, measured, [note])


def without_gradients(plan: Plan, size: Size, others: Sequence[OtherCheckout]) -> Findings:
    """Time samples and log-densities without gradients.

    normflows is left out: it iterates to another tolerance and takes another number of terms, see
    the groups ``inverse`` and ``evaluation``.
    """
    found = Findings()
    contenders = [c for c in VECTOR_CONTENDERS if c not in (PLAIN_VECTORS, NORMFLOWS)]
    densities = {c.name: c.build(size) for c in contenders}
    timed = {name: runs(size, plan.points, density) for name, density in densities.items()}
    for run, what in (("sample", "samples"), ("log_prob", "log-densities")):
        group = f"{plan.points} {what} without gradients, {text(size)}"
        clocks: dict[str, Clock] = {
            name: partial(seconds, each[run], plan.vector_steps) for name, each in timed.items()
        }
        for other in others:
            clocks[other.name] = other.clock(size, run, plan.vector_steps, plan.points)
        measured = sampled(group, clocks, plan.repeats, "s")
        found.measurements += measured
        least = AtLeast(2.5) if size.hidden == SIZES[0].hidden else None
        found.rows += faster(group, measured, others, least)
    return found


def faster(
    group: str,
    measured: Sequence[Measurement],
    others: Sequence[OtherCheckout],
    least: AtLeast | None,
) -> list[Row]:
    """How many times as fast as the second checkout the first one is; no row without checkouts."""
    if not others:
        return []
    here, other = (each.name for each in others)
    figure = f"{group}: times as fast as {other.removeprefix('pyro-resflow ')}"
    return [Row(figure, ratio(measured, other, here), least)]


def text(size: Size) -> str:
    """A size in words."""
    widths = ", ".join(map(str, size.hidden))
    blocks = f"{size.blocks} blocks of [{widths}]"
    return f"{size.dim}-d, {blocks}, batch {size.batch}, fast in {size.fast}"
