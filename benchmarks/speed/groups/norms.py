"""Measure the share of a training step that updates the layers' norms."""

from __future__ import annotations

from pyro_resflow.nn import update_norms

from ..contenders import KEEP, RECOMPUTE, Model, Step
from ..findings import AtMost, Findings, Measurement, Row
from ..plan import Plan
from ..timing import sampled, seconds
from ..workloads import Workload


def norms(plan: Plan) -> Findings:
    """Time the update of all norms, and the rest of the step separately."""
    found = Findings()
    for workload in plan.images:
        found.add(update_share(workload, plan))
    return found


def update_share(workload: Workload, plan: Plan) -> Findings:
    """The share of one workload."""
    group = f"training step without, and update of, all norms, {workload.name}"
    found = Findings()
    for contender in (KEEP, RECOMPUTE):
        model = contender.build(workload).to(plan.device)
        step = contender.training(model, workload.data().to(plan.device))
        measured = apart(f"{group}, {contender.name}", model, step, plan)
        found.measurements += measured
        rest, update = measured
        found.rows.append(
            Row(
                f"update of all norms, {workload.name}: share of a training step, "
                f"{contender.name.partition(', ')[2]}",
                update.median / (rest.median + update.median),
                AtMost(0.05),
            )
        )
    return found


def apart(group: str, model: Model, step: Step, plan: Plan) -> list[Measurement]:
    """Time the step and, before each step, the update that it would otherwise do."""

    def update() -> None:
        update_norms(model)

    step()
    durations: list[float] = []

    def rest() -> float:
        durations.append(seconds(update))
        return seconds(step)

    (times,) = sampled(group, {"the rest of the step": rest}, plan.repeats, "s")
    counted = tuple(durations[-plan.repeats :])
    return [times, Measurement(group, "update of all norms", counted, "s")]
