"""Draws from the posterior, with the model's densities and predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from torch import Tensor

from ...logdet import Exact
from ...transforms import temporary_logdet
from ...transforms.core.inside import inside
from .sites import (
    all_sites,
    batch_shape_of,
    full_value,
    inferred_sites,
    is_deterministic,
    log_density,
    observed_sites,
    sample_sites,
    was_observed,
)

Model = Callable[..., Any]


@dataclass(frozen=True)
class Traces:
    """The traces of one run, for one draw or for many along a separate dimension.

    Attributes:
        latents: the source of the latent values.
        model: the model at these values.
        free: the model with new draws of its observed sites; None if they are not needed.
    """

    latents: Trace
    model: Trace
    free: Trace | None


@dataclass(frozen=True)
class Draws:
    """Draws from the posterior, along the first dimension of every tensor.

    Attributes:
        posterior: the latent and the deterministic values, by site.
        predictive: new draws of the observed sites.
        log_likelihood: of each observation.
        lp: log p(z, x).
        log_q: log q(z).
    """

    posterior: dict[str, Tensor]
    predictive: dict[str, Tensor]
    log_likelihood: dict[str, Tensor]
    lp: Tensor
    log_q: Tensor

    @classmethod
    def of(cls, traces: Traces, single: Traces, number: int) -> Draws:
        """The draws in traces of many draws, each with the shape of a run of a single draw."""
        sites = {site["name"]: site for site in sample_sites(single.model)}

        def values(found: Iterable[Any]) -> dict[str, Tensor]:
            return {
                s["name"]: rows(full_value(s), number, full_value(sites[s["name"]]).shape)
                for s in found
            }

        lp = summed(traces.model, single.model, number)
        observed = list(observed_sites(traces.model))
        free = traces.free.nodes if traces.free is not None else {}
        return cls(
            posterior=values(inferred_sites(traces.model)),
            predictive=values(free[site["name"]] for site in observed if free),
            log_likelihood={
                s["name"]: rows(log_density(s), number, batch_shape_of(sites[s["name"]]))
                for s in observed
            },
            lp=lp,
            log_q=summed(traces.latents, single.latents, number),
        )

    @classmethod
    def joined(cls, parts: Sequence[Draws]) -> Draws:
        """The concatenation of draws.

        Raises:
            ValueError: unless all have the same sites, of the same shapes.
        """

        def shapes(each: Draws) -> dict[str, torch.Size]:
            values = {**each.posterior, **each.log_likelihood}
            return {name: value.shape[1:] for name, value in values.items()}

        def join(select: Callable[[Draws], dict[str, Tensor]]) -> dict[str, Tensor]:
            return {n: torch.cat([select(part)[n] for part in parts]) for n in select(parts[0])}

        for part in parts:
            if shapes(part) != shapes(parts[0]):
                raise ValueError(
                    "model: its sites, or their shapes, are not the same in every draw: "
                    f"{_readable(shapes(parts[0]))}, then {_readable(shapes(part))}."
                )

        return cls(
            posterior=join(lambda draws: draws.posterior),
            predictive=join(lambda draws: draws.predictive),
            log_likelihood=join(lambda draws: draws.log_likelihood),
            lp=torch.cat([part.lp for part in parts]),
            log_q=torch.cat([part.log_q for part in parts]),
        )

    @property
    def log_weight(self) -> Tensor:
        """log p(z, x) - log q(z)."""
        return self.lp - self.log_q.to(self.lp.device)


def rows(tensor: Tensor, number: int, shape: Sequence[int]) -> Tensor:
    """A tensor reshaped to ``(number, *shape)``; one without draws is expanded.

    Raises:
        ValueError: if it has another number of entries.
    """
    size = torch.Size(shape)
    if tensor.numel() == number * size.numel():
        return tensor.reshape(number, *size)
    if tensor.numel() == size.numel():
        return tensor.reshape(size).expand(number, *size)
    raise ValueError(f"shape {tuple(tensor.shape)} does not hold {number} of {tuple(size)}")


def summed(trace: Trace, single: Trace, number: int) -> Tensor:
    """The joint log density of all sites, for each draw, in double precision."""
    trace.compute_log_prob()
    total = torch.zeros(number, dtype=torch.float64)
    for site in all_sites(trace):
        if not is_deterministic(site):
            density = site["log_prob"].double()
            densities = rows(density, number, batch_shape_of(single.nodes[site["name"]]))
            total = total.to(density.device) + densities.reshape(number, -1).sum(1)
    return total


def replayed(
    model: Model, latents: Trace, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Trace:
    """The trace of the model at the latent values of another trace."""
    trace = poutine.trace(poutine.replay(model, trace=latents)).get_trace(*args, **kwargs)
    for site in sample_sites(trace):
        if not site["is_observed"] and site["name"] not in latents and not was_observed(site):
            raise ValueError(
                "guide: expected a guide that samples all latent sites of the model, got one "
                f"without {site['name']!r}. If this site is data, did you leave the observations "
                "out of the arguments? A site that is summed out has to be inferred first, with "
                "pyro.infer.infer_discrete."
            )
    return trace


class ResampleObserved(UnconditionMessenger):
    """Draw observed sites from their distributions, with the shape of the data.

    Pyro's own ``poutine.uncondition`` also redraws ``pyro.deterministic`` sites, with a wrong
    shape inside a plate, and draws a single value for data without a plate.
    """

    def _pyro_sample(self, msg: Any) -> None:
        if is_deterministic(msg) or not msg["is_observed"]:
            return
        shape = batch_shape_of(msg)
        if shape != msg["fn"].batch_shape:
            msg["fn"] = msg["fn"].expand(shape)
        super()._pyro_sample(msg)


def resampling_observed(model: Model) -> Model:
    """The model with its observed sites drawn from their distributions."""

    def predictive(*args: Any, **kwargs: Any) -> Any:
        with ResampleObserved():
            return model(*args, **kwargs)

    return predictive


@contextmanager
def exact_densities(traces: Iterable[Trace]) -> Iterator[None]:
    """Context manager: residual blocks in the traces' distributions use :class:`Exact`."""
    distributions = [
        site["fn"] for trace in traces for site in trace.nodes.values() if site["type"] == "sample"
    ]
    with temporary_logdet(distributions, Exact()):
        yield


def check_number(num_samples: int) -> None:
    """Raise unless at least one draw is requested.

    Raises:
        ValueError: for a number below 1.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples: expected at least 1, got {num_samples}.")


def is_point(distribution: Any) -> bool:
    """Whether a distribution is a point mass, possibly masked or expanded."""
    return any(isinstance(part, dist.Delta) for part in inside(distribution))


def point_masses(trace: Trace, draws: Draws) -> list[str]:
    """The latent sites with a density in the model whose draws are all equal."""
    return [
        site["name"]
        for site in inferred_sites(trace)
        if not is_deterministic(site)
        and not is_point(site["fn"])
        and _all_the_same(draws.posterior[site["name"]])
    ]


def _all_the_same(values: Tensor) -> bool:
    several = len(values) > 1 and values.is_floating_point()
    return several and torch.equal(values[1:], values[:-1])


def _readable(shapes: Mapping[str, torch.Size]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(shape) for name, shape in shapes.items()}
