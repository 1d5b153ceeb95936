"""Measure the peak memory of training, each in a new process, and its growth with depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..contenders import KEEP, RECOMPUTE, REDUCED, UNREDUCED, Contender
from ..findings import AtMost, Findings, Measurement, Row, ratio
from ..memory import DEFAULT_MALLOC, LIVE, STEPS, peak_memory
from ..plan import Plan
from ..workloads import Workload

NOTES = [
    f"Peak memory is the resident set size at the peak of {STEPS} training steps minus that "
    "before them, in a new process that has imported the libraries, trained a miniature (so that "
    "code loaded on first use counts as imported) and built model and batch. On a GPU it is the "
    "memory that torch allocated. It includes gradients and the optimizer's state. The C library "
    "returns freed memory (`MALLOC_MMAP_THRESHOLD_=65536`), so that the figure is memory in use. "
    "By default the C library keeps fragments of freed memory; this is measured on the first "
    "workload, too. The memory of one more block is the least-squares slope over depths.",
]


def memory(plan: Plan) -> Findings:
    """Measure peaks and slopes."""
    found = Findings(notes=NOTES)
    for workload in plan.images:
        measured = [
            peaks(f"peak memory, {workload.name}", contender, workload, plan)
            for contender in (KEEP, RECOMPUTE, REDUCED, UNREDUCED)
        ]
        found.measurements += measured
        found.rows += peak_rows(workload, measured)
    if plan.device.type == "cpu":
        found.add(with_default_malloc(plan))
    found.add(growth(plan))
    return found


def peaks(
    group: str,
    contender: Contender,
    workload: Workload,
    plan: Plan,
    environment: Mapping[str, str] = LIVE,
) -> Measurement:
    """Measure the peaks of a contender in new processes."""
    values = [
        float(peak_memory(contender.name, workload, plan.device, environment))
        for _ in range(plan.memory_repeats)
    ]
    return Measurement(group, contender.name, tuple(values), "B")


def with_default_malloc(plan: Plan) -> Findings:
    """Measure the peaks of the first workload with the default allocator."""
    workload = plan.images[0]
    group = f"peak memory with malloc's fragments, {workload.name}"
    measured = [
        peaks(group, contender, workload, plan, DEFAULT_MALLOC)
        for contender in (KEEP, RECOMPUTE, REDUCED)
    ]
    figure = f"{group}: recompute, share of normflows with reduce_memory"
    return Findings([Row(figure, ratio(measured, RECOMPUTE.name, REDUCED.name))], measured)


def peak_rows(workload: Workload, measured: Sequence[Measurement]) -> list[Row]:
    """Compare the peaks with those of normflows with reduce_memory."""
    figure = f"peak memory, {workload.name}"
    return [
        Row(
            f"{figure}: recompute, share of normflows with reduce_memory",
            ratio(measured, RECOMPUTE.name, REDUCED.name),
            AtMost(0.35),
            AtMost(0.2),
        ),
        Row(
            f"{figure}: keep, share of normflows with reduce_memory",
            ratio(measured, KEEP.name, REDUCED.name),
        ),
    ]


def growth(plan: Plan) -> Findings:
    """Measure the memory of one more block, in units of its input, on the first workload."""
    workload = replace(plan.images[0], batch=plan.memory_batch)
    group = f"peak memory against depth, {workload.name}, batch {workload.batch}"
    found = Findings()
    for contender in (RECOMPUTE, KEEP, REDUCED):
        measured = [
            Measurement(
                group,
                contender.name,
                (float(peak_memory(contender.name, deep, plan.device)),),
                "B",
                deep.blocks,
            )
            for deep in (replace(workload, blocks=depth) for depth in plan.memory_depths)
        ]
        found.measurements += measured
        found.rows.append(
            Row(
                f"memory that one more block adds, in sizes of its input: {contender.name}",
                slope(measured) / workload.input_bytes,
                AtMost(3.5) if contender is RECOMPUTE else None,
                note=f"batch {workload.batch}, {min(plan.memory_depths)} to "
                f"{max(plan.memory_depths)} blocks",
            )
        )
    return found


def slope(curve: Sequence[Measurement]) -> float:
    """The least-squares slope of medians over positions."""
    xs, ys = [float(m.at or 0) for m in curve], [m.median for m in curve]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    products = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    return products / sum((x - mean_x) ** 2 for x in xs)
