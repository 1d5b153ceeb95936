"""New optimizer settings of a resumed run, which keeps the optimizer's moments."""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from examples.images.optimization import ParametersOf
from examples.images.run_errors import SetupError
from pyro_resflow.nn import LipschitzLinear

PROGRESS_ENTRIES = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")
"""State of a `ReduceLROnPlateau` that is progress, not a setting."""


def renew_optimizer_state(
    trainer: Trainer, task: LightningModule, checkpoint: dict[str, Any], *, keep_rate: bool
) -> None:
    """Change a checkpoint so that the run's optimizer settings replace the checkpoint's.

    The optimizer keeps its moments of the gradients. A schedule moves to the step of the
    checkpoint, as if the run had begun with the new settings; a `ReduceLROnPlateau` keeps its
    progress.

    Args:
        trainer: The trainer, with a new optimizer and schedule, before their state is restored.
        task: The task.
        checkpoint: The checkpoint, which is changed in place.
        keep_rate: Whether a `ReduceLROnPlateau` keeps its current learning rate.

    Raises:
        SetupError: If the checkpoint lacks state that the optimizer needs, or the schedule ends
            before the step of the checkpoint.
    """
    (optimizer,) = trainer.optimizers
    (schedule,) = trainer.lr_scheduler_configs
    (saved,) = checkpoint["optimizer_states"]
    check_moments(task, saved)
    if not isinstance(schedule.scheduler, ReduceLROnPlateau):
        advance_schedule(schedule.scheduler, checkpoint["global_step"])
    groups = optimizer.state_dict()["param_groups"]
    state = schedule.scheduler.state_dict()
    if isinstance(schedule.scheduler, ReduceLROnPlateau):
        state.update(
            (k, v) for k, v in checkpoint["lr_schedulers"][0].items() if k in PROGRESS_ENTRIES
        )
        if keep_rate:
            for group, before in zip(groups, saved["param_groups"], strict=True):
                group["lr"] = before["lr"]
    checkpoint["optimizer_states"] = [{"state": saved["state"], "param_groups": groups}]
    checkpoint["lr_schedulers"] = [state]


def advance_schedule(scheduler: LRScheduler, steps: int) -> None:
    """Advance a schedule by a number of steps.

    Raises:
        SetupError: If the schedule has fewer steps.
    """
    with warnings.catch_warnings():
        # The optimizer has taken its steps in the earlier run.
        warnings.simplefilter("ignore")
        try:
            for _ in range(steps):
                scheduler.step()
        except ValueError as error:
            raise SetupError(
                f"model.lr_scheduler: the schedule ends before the checkpoint's step {steps} "
                f"({error}); give it more steps"
            ) from error


def check_moments(task: LightningModule, saved: dict[str, Any]) -> None:
    """Raise a `SetupError` if the saved state lacks an entry that the task's optimizer needs."""
    trial = LipschitzLinear(1, 1)  # of each kind of parameters that an optimizer may tell apart
    for parameter in trial.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = task.optimizer(ParametersOf(trial))
    optimizer.step(lambda: torch.zeros(()))
    name = f"model.optimizer {type(optimizer).__name__}"
    groups = optimizer.param_groups, saved["param_groups"]
    if len(groups[0]) != len(groups[1]):
        raise SetupError(
            f"{name}: it has {len(groups[0])} groups of parameters, and the checkpoint "
            f"{len(groups[1])}; keep the earlier optimizer, or start a new run"
        )
    for group, before in zip(*groups, strict=True):
        # a parameter may have further entries for its shape, which the trial does not have
        needed = set.intersection(*(entries(optimizer.state, group["params"]) or [set()]))
        held = set().union(*entries(saved["state"], before["params"]))
        if held and needed - held:
            raise SetupError(
                f"{name}: with these settings it needs {', '.join(sorted(needed - held))}, which "
                "the checkpoint does not have; keep the earlier settings, or start a new run"
            )


def entries(state: Mapping[Any, dict[str, Any]], parameters: Iterable[Any]) -> list[set[str]]:
    """Return the names of what an optimizer remembers of each parameter in a group."""
    known = [state[each] for each in parameters if each in state]
    return [{name for name, value in each.items() if value is not None} for each in known]
