"""Where Pyro and torch exponentiate a log-density: weights, bounds, mixtures and enumeration.

The mean of exp(log p + noise) is larger than p. Each entry tells from a caller's frame whether the
log-determinant at x is going to stand in an exponent, and what the result is called.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FrameType

import torch
from torch import Tensor
from torch.distributions import Transform

from ...callers import callers, callers_in, module_of

Judge = Callable[[FrameType, torch.Size, int], str | None]
"""Of a frame, the batch shape of the log-determinant and the event dimensions of its points."""


def _always(what: str) -> Judge:
    return lambda frame, batch, event_dim: what


def _of_several_particles(what: str) -> Judge:
    """Of one particle alone the logarithm of the exponential is the log-density again."""

    def judge(frame: FrameType, batch: torch.Size, event_dim: int) -> str | None:
        return what if getattr(frame.f_locals.get("self"), "num_particles", 1) > 1 else None

    return judge


def _laplace(frame: FrameType, batch: torch.Size, event_dim: int) -> str | None:
    is_it = frame.f_code.co_name == "laplace_approximation"
    return "the Hessian of AutoLaplaceApproximation" if is_it else None


def _weighed(frame: FrameType, batch: torch.Size, event_dim: int) -> str | None:
    is_it = type(frame.f_locals.get("self")).__name__ == "WeighedPredictive"
    return "the weights of WeighedPredictive" if is_it else None


def _mixture(frame: FrameType, batch: torch.Size, event_dim: int) -> str | None:
    """Noise that all components share, as of one flow behind them all, can be taken out."""
    mixture = frame.f_locals.get("self")
    if frame.f_code.co_name != "log_prob":
        return None
    reinterpreted = len(getattr(mixture, "event_shape", ())) - event_dim
    differs = _size(batch, -1, reinterpreted) > 1
    return f"the sum over the components of {type(mixture).__name__}" if differs else None


def _enumeration(frame: FrameType, batch: torch.Size, event_dim: int) -> str | None:
    """Noise that does not depend on what is enumerated in the model can be taken out."""
    for inner in callers():
        if inner is frame:
            return None
        if inner.f_code.co_name == "compute_log_prob":
            trace, site = inner.f_locals["self"], inner.f_locals["site"]
            sampled = _names_sampled_by_the_guide(inner, frame)
            dims = [
                node["infer"].get("_enumerate_dim")
                for name, node in trace.nodes.items()
                if node["type"] == "sample" and name not in sampled
            ]
            reinterpreted = len(site["fn"].event_shape) - event_dim
            if any(dim is not None and _size(batch, dim, reinterpreted) > 1 for dim in dims):
                return "the sum over an enumerated variable"
    return None


def _names_sampled_by_the_guide(inner: FrameType, outer: FrameType) -> set[str]:
    """The sites that the guide enumerates itself: it averages log-densities over them."""
    frame: FrameType | None = inner
    while frame is not None and frame is not outer:
        guide_trace = frame.f_locals.get("guide_trace")
        if guide_trace is not None:
            return set(guide_trace.nodes)
        frame = frame.f_back
    return set()


def _size(batch: torch.Size, dim: int, reinterpreted: int) -> int:
    """The size of a batch dimension, counted from the right of what is no event yet."""
    index = len(batch) - max(reinterpreted, 0) + dim
    return batch[index] if index >= 0 else 1


EXPONENTIALS: dict[str, Judge] = {
    "pyro.infer.renyi_elbo": _of_several_particles("the bound of RenyiELBO"),
    "pyro.infer.rws": _of_several_particles("the weights of ReweightedWakeSleep"),
    "pyro.infer.trace_tail_adaptive_elbo": _always("the weights of TraceTailAdaptive_ELBO"),
    "pyro.infer.tracetmc_elbo": _always("the bound of TraceTMC_ELBO"),
    "pyro.infer.importance": _always("importance weights"),
    "pyro.infer.smcfilter": _always("the weights of SMCFilter"),
    "pyro.infer.resampler": _always("the weights of Resampler"),
    "pyro.infer.predictive": _weighed,
    "pyro.infer.autoguide.guides": _laplace,
    "pyro.infer.traceenum_elbo": _enumeration,
    "pyro.infer.discrete": _enumeration,
    "pyro.distributions.hmm": _mixture,
    "torch.distributions.mixture_same_family": _mixture,
}
"""By the module that the caller stands in."""


def exponential_asked_for(transform: Transform, x: Tensor, y: Tensor) -> str | None:
    """What a caller exponentiates the log-determinant at a pair for, if one does."""
    for frame in callers_in(EXPONENTIALS):
        dims = transform.domain.event_dim, transform.codomain.event_dim
        batches = (t.shape[: t.dim() - dim] for t, dim in zip((x, y), dims, strict=True))
        judge = EXPONENTIALS[module_of(frame)]
        what = judge(frame, torch.broadcast_shapes(*batches), max(dims))
        if what is not None:
            return what
    return None
