"""New settings for the optimizer of a run that goes on: its moments stay, its settings do not."""

import warnings
from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from examples.images.run_errors import SetupError

COUNTED = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")
"""What a schedule that waits for a metric has seen, beside its settings."""


def renew(
    trainer: Trainer, task: LightningModule, checkpoint: dict[str, Any], *, keep_rate: bool
) -> None:
    """Change a checkpoint so that the settings of a run, not the checkpoint's, take effect.

    The optimizer keeps what it knows of the gradients. A schedule goes to where it would be, had
    the run begun with its settings; one that waits for a metric keeps what it has seen.

    Args:
        trainer: The trainer, with a new optimizer and a new schedule, before they are restored.
        task: What is trained.
        checkpoint: What they are to be restored from.
        keep_rate: Whether a schedule that waits for a metric keeps the rate that it has come to.

    Raises:
        SetupError: If the optimizer needs what the checkpoint does not hold, or the schedule ends
            before the step of the checkpoint.
    """
    (optimizer,) = trainer.optimizers
    (schedule,) = trainer.lr_scheduler_configs
    (saved,) = checkpoint["optimizer_states"]
    check_moments(task, saved["state"])
    if not isinstance(schedule.scheduler, ReduceLROnPlateau):
        advance(schedule.scheduler, checkpoint["global_step"])
    groups = optimizer.state_dict()["param_groups"]
    state = schedule.scheduler.state_dict()
    if isinstance(schedule.scheduler, ReduceLROnPlateau):
        state.update((k, v) for k, v in checkpoint["lr_schedulers"][0].items() if k in COUNTED)
        if keep_rate:
            for group, before in zip(groups, saved["param_groups"], strict=True):
                group["lr"] = before["lr"]
    checkpoint["optimizer_states"] = [{"state": saved["state"], "param_groups": groups}]
    checkpoint["lr_schedulers"] = [state]


def advance(scheduler: LRScheduler, steps: int) -> None:
    """Step a schedule.

    Raises:
        SetupError: If it has fewer steps.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the optimizer has not stepped: it has, in the past
        try:
            for _ in range(steps):
                scheduler.step()
        except ValueError as error:
            raise SetupError(
                f"model.lr_scheduler: it does not go to step {steps} of the checkpoint ({error})"
            ) from error


def check_moments(task: LightningModule, saved: dict[int, dict[str, Any]]) -> None:
    """Raise a `SetupError` if an optimizer needs what the state of another does not hold."""
    if not saved:
        return
    trial = nn.Parameter(torch.zeros(1))
    trial.grad = torch.zeros(1)
    optimizer = task.optimizer([trial])
    optimizer.step(lambda: torch.zeros(()))
    needed = {name for name, value in optimizer.state[trial].items() if value is not None}
    held = {name for name, value in next(iter(saved.values())).items() if value is not None}
    if needed - held:
        raise SetupError(
            f"model.optimizer {type(optimizer).__name__}: with these settings it goes on from "
            f"{', '.join(sorted(needed - held))}, which the checkpoint does not hold; leave the "
            "settings as they were, or start a new run"
        )
