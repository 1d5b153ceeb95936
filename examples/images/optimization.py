"""The optimizer of a task and its schedule, in the form that Lightning takes."""

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import LRSchedulerConfigType, OptimizerLRSchedulerConfig
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, ReduceLROnPlateau

from examples.images.run_errors import SetupError


def constant_rate(optimizer: Optimizer) -> LRScheduler:
    """Return a schedule with a constant learning rate."""
    return ConstantLR(optimizer, factor=1.0)


class ParametersOf(list[nn.Parameter]):
    """All parameters of a model, in the form that torch's optimizers take, and the model.

    An optimizer that treats kinds of layers differently finds them in the model.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters())
        self.model = model


def optimization(
    model: nn.Module,
    optimizer: OptimizerCallable,
    lr_scheduler: LRSchedulerCallable,
    validated_every: int,
) -> OptimizerLRSchedulerConfig:
    """Build an optimizer and its schedule.

    A schedule takes a step after every optimizer step; `ReduceLROnPlateau`, which waits for a
    metric, at the end of every epoch with a validation.

    Args:
        model: The model to train.
        optimizer: Builds the optimizer from the parameters.
        lr_scheduler: Builds the schedule from the optimizer.
        validated_every: Epochs between two validations.

    Raises:
        SetupError: For a `ReduceLROnPlateau` that does not name its metric.
    """
    built = optimizer(ParametersOf(model))
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
