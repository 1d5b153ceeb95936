"""Diagnosis of a diverged run: where values stop being finite, and where to resume."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.distributions import Transform

from examples.images.run_errors import DivergedError
from examples.images.schedules import OneCycle
from pyro_resflow.nn import NonFiniteWeightError


class NotFinite(Exception):  # noqa: N818 a finding, caught in this module
    """A transform has returned a value that is not finite."""


def divergence_error(
    trainer: Trainer, task: LightningModule, batch: Any, event: str
) -> DivergedError:
    """Return the error that ends a diverged run, with its origin and the last good checkpoint.

    Args:
        trainer: The trainer.
        task: The task, with the gradients of the step if there are any.
        batch: The batch of the step.
        event: The event to name in the message.
    """
    callbacks = reversed(trainer.checkpoint_callbacks)
    paths = [path for each in callbacks if (path := getattr(each, "last_model_path", ""))]
    good = next(iter(paths), trainer.ckpt_path)
    return DivergedError(
        f"step {trainer.global_step + 1}: {event}; it begins in {origin(task, batch)}. Last good "
        f"checkpoint: {good or 'none'}. Resume from it, or from an earlier one, with a lower "
        f"{rate_setting(trainer)} or --trainer.gradient_clip_val",
        good,
    )


def rate_setting(trainer: Trainer) -> str:
    """Return the option that sets the learning rate, with its value."""
    group = trainer.optimizers[0].param_groups[0]
    scheduler = trainer.lr_scheduler_configs[0].scheduler
    if "max_lr" in group and not isinstance(scheduler, OneCycle):  # PyTorch's own cycles
        return f"--model.lr_scheduler.init_args.max_lr (it is {group['max_lr']:g})"
    rate = group.get("max_lr", group.get("initial_lr", group["lr"]))
    return f"--model.optimizer.init_args.lr (it is {rate:g})"


@contextmanager
def explain_nonfinite_weights(
    trainer: Trainer, task: LightningModule, batch: Any
) -> Iterator[None]:
    """Turn the error of a network with a non-finite weight into a `DivergedError`.

    Args:
        trainer: The trainer.
        task: The task.
        batch: The batch of the step.
    """
    try:
        yield
    except NonFiniteWeightError as error:
        raise divergence_error(trainer, task, batch, "a weight is not finite") from error


def origin(task: LightningModule, batch: Any) -> str:
    """Name the part of a task where values stop being finite.

    That is a weight that is not finite; else the innermost transform whose output is not finite;
    else the last parameter, in the order of the forward pass, whose gradient is not finite, since
    the backward pass comes to it first.
    """
    for name, parameter in task.named_parameters():
        if not parameter.square().sum().isfinite():  # without a finite norm
            return f"the weight {name!r}"
    try:
        with stop_at_nonfinite_output(task):
            task.probe(batch)
    except NotFinite as found:
        return str(found)
    gradients = [(name, p.grad) for name, p in task.named_parameters() if p.grad is not None]
    for name, gradient in reversed(gradients):
        if not gradient.isfinite().all():
            return f"the gradient of {name!r}"
    return "no part when computed again: a rare draw of noise is needed"


@contextmanager
def stop_at_nonfinite_output(module: nn.Module) -> Iterator[None]:
    """Raise `NotFinite` as soon as a transform in a module returns a value that is not finite."""
    patched = []
    try:
        for name, part in module.named_modules():
            for method in ("call_and_ladj", "inverse_and_ladj"):
                if isinstance(part, Transform) and hasattr(part, method):
                    label = f"the layer {name!r} ({type(part).__name__})"
                    vars(part)[method] = _raising_if_nonfinite(getattr(part, method), label)
                    patched.append((part, method))
        yield
    finally:
        for part, method in patched:
            del vars(part)[method]


def _raising_if_nonfinite(
    method: Callable[[Tensor], tuple[Tensor, Tensor]], label: str
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def checked(x: Tensor) -> tuple[Tensor, Tensor]:
        y, ladj = method(x)
        if not (y.isfinite().all() and ladj.isfinite().all()):
            raise NotFinite(label)
        return y, ladj

    return checked
