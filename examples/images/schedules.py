"""Learning rate schedules that PyTorch does not have."""

from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from examples.images.run_errors import SetupError


class OneCycle(OneCycleLR):
    """PyTorch's one-cycle schedule with the optimizer's learning rate as its peak.

    PyTorch's schedule has its own peak, which overrides the optimizer's rate, and raises an error
    after its last step, which ends a resumed run or one with smaller batches. This one keeps its
    last rate instead.

    Args:
        optimizer: The optimizer; its learning rate is the peak.
        max_lr: The peak, if given; it must be the optimizer's learning rate.
        **settings: See `torch.optim.lr_scheduler.OneCycleLR`.

    Raises:
        SetupError: If `max_lr` is not the optimizer's learning rate.
    """

    def __init__(self, optimizer: Optimizer, max_lr: float | None = None, **settings: Any) -> None:
        rates = [group["lr"] for group in optimizer.param_groups]
        if max_lr is not None and max_lr != rates[0]:
            raise SetupError(
                f"model.lr_scheduler.init_args.max_lr {max_lr}: the peak is the optimizer's "
                f"learning rate, {rates[0]}; set model.optimizer.init_args.lr, and max_lr to null"
            )
        super().__init__(optimizer, rates, **settings)

    def get_lr(self) -> list[float]:
        """Return the rate of each group of parameters."""
        if self.last_epoch >= self.total_steps:
            return [group["lr"] for group in self.optimizer.param_groups]
        return super().get_lr()


class WarmUpThenDecay(LambdaLR):
    """Linear warm-up from zero, then a constant rate, then exponential decay to a floor.

    Args:
        optimizer: The optimizer.
        warm_up: Steps of warm-up.
        decay_from: Step at which the decay begins.
        decay: Factor of each step of the decay.
        floor: Smallest factor of the optimizer's learning rate.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warm_up: int = 5000,
        decay_from: int = 50_000,
        decay: float = 0.99995,
        floor: float = 0.3,
    ) -> None:
        if warm_up < 1 or decay_from < warm_up:
            raise ValueError(
                "warm_up, decay_from: expected at least one step of warm-up and the fall after "
                f"it, got {warm_up} and {decay_from}"
            )

        def factor(step: int) -> float:
            rise = min(1.0, step / warm_up)
            return rise * max(floor, decay ** max(0, step - decay_from))

        super().__init__(optimizer, factor)


class WarmUpThenSteps(LambdaLR):
    """Linear warm-up from zero, then a factor at each milestone.

    Args:
        optimizer: The optimizer.
        warm_up: Steps of warm-up.
        milestones: Steps that multiply the rate by the factor.
        gamma: The factor.
    """

    def __init__(
        self, optimizer: Optimizer, warm_up: int, milestones: Sequence[int], gamma: float = 0.2
    ) -> None:
        if warm_up < 1:
            raise ValueError(f"warm_up: expected at least one step, got {warm_up}")

        def factor(step: int) -> float:
            return min(1.0, step / warm_up) * gamma ** sum(step >= each for each in milestones)

        super().__init__(optimizer, factor)
