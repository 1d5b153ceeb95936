"""Adam with a decaying learning rate, and SVI with a progress bar, for steps or for seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import ExponentialLR, PyroOptim
from tqdm import tqdm


def decaying_adam(learning_rate: float, steps: int, last: float = 0.05) -> ExponentialLR:
    """Return Adam with an exponentially decaying learning rate.

    Args:
        learning_rate: Learning rate at the first step.
        steps: Number of steps.
        last: Factor of the learning rate at the last step.
    """
    return ExponentialLR(
        {
            "optimizer": torch.optim.Adam,
            "optim_args": {"lr": learning_rate},
            "gamma": last ** (1 / steps),
        }
    )


def train(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    optimizer: PyroOptim,
    batches: Iterable[tuple[Any, ...]],
    *,
    steps: int,
    elbo: Trace_ELBO | None = None,
    description: str = "SVI",
) -> None:
    """Take a step of SVI and of the learning rate's schedule for each batch.

    Args:
        model: A Pyro model.
        guide: Its guide.
        optimizer: One of Pyro's learning rate schedules.
        batches: Arguments of the model and the guide at each step.
        steps: Number of batches, for the progress bar.
        elbo: The objective; default ``Trace_ELBO()``.
        description: Label of the progress bar.
    """
    svi = SVI(model, guide, optimizer, elbo if elbo is not None else Trace_ELBO())
    progress = tqdm(batches, desc=description, total=steps)
    for batch in progress:
        loss = svi.step(*batch)
        optimizer.step()
        progress.set_postfix(loss=f"{loss:.3f}", refresh=False)


@dataclass(frozen=True)
class Budget:
    """What a training may spend.

    Attributes:
        steps: Optimisation steps.
        seconds: Processor seconds, in place of steps.
    """

    steps: int
    seconds: float | None = None

    def spent(self, steps: int, seconds: float) -> float:
        """Return the spent share of the budget."""
        return steps / self.steps if self.seconds is None else seconds / self.seconds


class Training(NamedTuple):
    """How something was trained: the learning rate, the steps, and the processor seconds."""

    learning_rate: float
    steps: int
    seconds: float


RATE_EVERY = 10
"""Steps between two changes of the learning rate: each change visits every parameter."""


def train_within(
    budget: Budget,
    svi: SVI,
    batches: Iterable[tuple[Any, ...]],
    *,
    learning_rate: float,
    last: float,
    description: str,
) -> Training:
    """Take steps of SVI until the budget is spent.

    Args:
        budget: What the training may spend.
        svi: Has a `PyroOptim` as its optimizer.
        batches: Arguments of the model and the guide at each step; more than enough of them.
        learning_rate: Learning rate at the first step.
        last: Factor of the learning rate at the last step; it falls exponentially.
        description: Label of the progress bar.
    """
    start, steps = time.process_time(), 0
    with tqdm(desc=description, leave=False) as bar:
        for batch in batches:
            spent = budget.spent(steps, time.process_time() - start)
            if spent >= 1:
                break
            if steps % RATE_EVERY == 0:
                for each in svi.optim.optim_objs.values():  # one for each parameter
                    each.param_groups[0]["lr"] = learning_rate * last**spent
            svi.step(*batch)
            steps += 1
            bar.update()
    return Training(learning_rate, steps, time.process_time() - start)


def empty_guide(*_: Any) -> None:
    """Sample nothing: the guide of a model without latent variables."""
