"""The optimizer of a task and its schedule, as Lightning wants them."""

from collections.abc import Iterable

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import LRSchedulerConfigType, OptimizerLRSchedulerConfig
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, ReduceLROnPlateau

from examples.images.run_errors import SetupError


def constant_rate(optimizer: Optimizer) -> LRScheduler:
    """Keep the learning rate as it is."""
    return ConstantLR(optimizer, factor=1.0)


def optimization(
    parameters: Iterable[nn.Parameter],
    optimizer: OptimizerCallable,
    lr_scheduler: LRSchedulerCallable,
    validated_every: int,
) -> OptimizerLRSchedulerConfig:
    """Build an optimizer and its schedule.

    A schedule is stepped after every optimizer step; one that waits for a metric to stop
    improving, at the end of every epoch that is validated.

    Args:
        parameters: What is trained.
        optimizer: Builds the optimizer from the parameters.
        lr_scheduler: Builds the schedule from the optimizer.
        validated_every: Epochs from one validation to the next.

    Raises:
        SetupError: For a schedule that waits for a metric and does not say for which.
    """
    built = optimizer(parameters)
    scheduler = lr_scheduler(built)
    schedule = LRSchedulerConfigType(scheduler=scheduler, interval="step")
    if isinstance(scheduler, ReduceLROnPlateau):
        if not hasattr(scheduler, "monitor"):
            raise SetupError(
                "model.lr_scheduler ReduceLROnPlateau: torch's does not say which metric it waits "
                "for; take lightning.pytorch.cli.ReduceLROnPlateau and set "
                "model.lr_scheduler.init_args.monitor, for instance to bits/validation"
            )
        schedule.update(
            interval="epoch", frequency=validated_every, monitor=scheduler.monitor, strict=True
        )
    return OptimizerLRSchedulerConfig(optimizer=built, lr_scheduler=schedule)
