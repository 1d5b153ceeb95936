"""What the model makes of a draw of the guide."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor

from ...logdet import Exact
from ...transforms import temporary_logdet
from .sites import (
    full_value,
    inferred_sites,
    log_density,
    observed_sites,
    sample_sites,
    was_observed,
)

Model = Callable[..., Any]


@dataclass(frozen=True)
class Draw:
    """One draw from the posterior, and what the model makes of it."""

    trace: Trace
    posterior: dict[str, Tensor]
    predictive: dict[str, Tensor]
    log_likelihood: dict[str, Tensor]
    lp: Tensor
    log_weight: Tensor | None

    @classmethod
    def of(
        cls,
        model: Model,
        latents: Trace,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        log_q: Tensor | float | None = None,
    ) -> Draw:
        """The model at the latent values of a trace."""
        trace = replayed(model, latents, args, kwargs)
        trace.compute_log_prob()
        free = replayed(poutine.uncondition(model), latents, args, kwargs)
        observed = list(observed_sites(trace))
        lp = torch.as_tensor(trace.log_prob_sum()).double()
        return cls(
            trace,
            {site["name"]: full_value(site) for site in inferred_sites(trace)},
            {site["name"]: full_value(free.nodes[site["name"]]) for site in observed},
            {site["name"]: log_density(site) for site in observed},
            lp,
            lp - log_q if log_q is not None else None,
        )


def replayed(model: Model, latents: Trace, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Trace:
    """The trace of the model at the latent values of another trace."""
    trace = poutine.trace(poutine.replay(model, trace=latents)).get_trace(*args, **kwargs)
    for site in sample_sites(trace):
        if not site["is_observed"] and site["name"] not in latents and not was_observed(site):
            raise ValueError(
                f"guide: it does not sample the latent site {site['name']!r} of the model. A site "
                "that is summed out has to be inferred first, by pyro.infer.infer_discrete."
            )
    return trace


def delta_trace(values: Mapping[str, Tensor]) -> Trace:
    """A trace that holds some values."""

    def guide() -> None:
        for name, value in values.items():
            pyro.sample(name, dist.Delta(value, event_dim=value.dim()))

    return poutine.trace(guide).get_trace()


def prototypes(
    model: Model, guide: Model, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[Trace]:
    """A trace of the guide and one of the model, which show what distributions there are."""
    latents = poutine.trace(guide).get_trace(*args, **kwargs)
    return [latents, replayed(model, latents, args, kwargs)]


@contextmanager
def exact_densities(traces: Iterable[Trace]) -> Iterator[None]:
    """Every residual block in the distributions of some traces uses :class:`Exact` inside."""
    distributions = [
        site["fn"] for trace in traces for site in trace.nodes.values() if site["type"] == "sample"
    ]
    with temporary_logdet(distributions, Exact()):
        yield


def check_number(num_samples: int) -> None:
    """Raise unless there is a draw to make.

    Raises:
        ValueError: for a number below 1.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples: expected at least 1, got {num_samples}.")
