"""Adam with a decaying learning rate, and SVI with a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

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


def empty_guide(*_: Any) -> None:
    """Sample nothing: the guide of a model without latent variables."""
