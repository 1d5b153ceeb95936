"""What the examples of vectors share: Adam that slows down, and SVI steps with a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import ExponentialLR, PyroOptim
from tqdm import tqdm


def slowing_adam(learning_rate: float, steps: int, last: float = 0.05) -> ExponentialLR:
    """Adam whose learning rate falls exponentially.

    Args:
        learning_rate: at the first step.
        steps: number of steps.
        last: share of it that is left at the end.
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
    """A step of SVI, and one of the learning rate, for each batch.

    Args:
        model: a Pyro model.
        guide: its guide.
        optimizer: one of Pyro's schedules.
        batches: the arguments of model and guide at each step.
        steps: number of batches, for the progress bar.
        elbo: the objective; default ``Trace_ELBO()``.
        description: what the progress bar says.
    """
    svi = SVI(model, guide, optimizer, elbo if elbo is not None else Trace_ELBO())
    progress = tqdm(batches, desc=description, total=steps)
    for batch in progress:
        loss = svi.step(*batch)
        optimizer.step()
        progress.set_postfix(loss=f"{loss:.3f}", refresh=False)


def no_guide(*_: Any) -> None:
    """The guide of a model without latent variables."""
