"""Where the numbers of a step stop being finite, and what to go back to."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.distributions import Transform

from examples.images.run_errors import DivergedError
from examples.images.schedules import OneCycle
from pyro_resflow.nn import NonFiniteWeightError


class NotFinite(Exception):  # noqa: N818 it is a finding, caught here
    """A transform has put out something that is not finite."""


def diverged(trainer: Trainer, task: LightningModule, batch: Any, what: str) -> DivergedError:
    """Return the error to stop with: what has happened, where it began, what to go back to.

    Args:
        trainer: The trainer.
        task: What is trained, with the gradients of the step if there are any.
        batch: The batch of the step.
        what: What has happened.
    """
    keepers = reversed(trainer.checkpoint_callbacks)
    paths = [path for keeper in keepers if (path := getattr(keeper, "last_model_path", ""))]
    good = next(iter(paths), trainer.ckpt_path)
    return DivergedError(
        f"step {trainer.global_step + 1}: {what}; it begins in {origin(task, batch)}. Last good "
        f"checkpoint: {good or 'none'}. Resume from it, or from one before, with a lower "
        f"{rate_setting(trainer)} or --trainer.gradient_clip_val",
        good,
    )


def rate_setting(trainer: Trainer) -> str:
    """Name the option that sets the learning rate, with what it is."""
    group = trainer.optimizers[0].param_groups[0]
    scheduler = trainer.lr_scheduler_configs[0].scheduler
    if "max_lr" in group and not isinstance(scheduler, OneCycle):  # PyTorch's own cycles
        return f"--model.lr_scheduler.init_args.max_lr (it is {group['max_lr']:g})"
    rate = group.get("max_lr", group.get("initial_lr", group["lr"]))
    return f"--model.optimizer.init_args.lr (it is {rate:g})"


@contextmanager
def explained(trainer: Trainer, task: LightningModule, batch: Any) -> Iterator[None]:
    """Turn the error of a network with a weight that is not finite into one to stop with.

    Args:
        trainer: The trainer.
        task: What is trained.
        batch: The batch of the step.
    """
    try:
        yield
    except NonFiniteWeightError as error:
        raise diverged(trainer, task, batch, "a weight is not finite") from error


def origin(task: LightningModule, batch: Any) -> str:
    """Name the part of a task in which the numbers stop being finite.

    A weight that is not finite; else the innermost transform that puts out something that is not;
    else the parameter, last of all in the order of the forward pass, whose gradient is not, for
    backward that is the first.
    """
    for name, parameter in task.named_parameters():
        if not parameter.square().sum().isfinite():  # of which no norm can be taken
            return f"the weight {name!r}"
    try:
        with watched(task):
            task.probe(batch)
    except NotFinite as found:
        return str(found)
    gradients = [(name, p.grad) for name, p in task.named_parameters() if p.grad is not None]
    for name, gradient in reversed(gradients):
        if not gradient.isfinite().all():
            return f"the gradient of {name!r}"
    return "no part when computed again: it takes a rare draw of noise"


@contextmanager
def watched(module: nn.Module) -> Iterator[None]:
    """Raise `NotFinite` when a transform inside a module puts out something that is not finite."""
    watching = []
    try:
        for name, part in module.named_modules():
            for method in ("call_and_ladj", "inverse_and_ladj"):
                if isinstance(part, Transform) and hasattr(part, method):
                    label = f"the layer {name!r} ({type(part).__name__})"
                    vars(part)[method] = _checked(getattr(part, method), label)
                    watching.append((part, method))
        yield
    finally:
        for part, method in watching:
            del vars(part)[method]


def _checked(
    method: Callable[[Tensor], tuple[Tensor, Tensor]], label: str
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def checked(x: Tensor) -> tuple[Tensor, Tensor]:
        y, ladj = method(x)
        if not (y.isfinite().all() and ladj.isfinite().all()):
            raise NotFinite(label)
        return y, ladj

    return checked
