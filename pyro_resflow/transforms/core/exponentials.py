"""Find out whether Pyro or torch exponentiates a log-density: weights, bounds, mixtures, sums.

The mean of exp(log p + noise) is larger than p, so a noisy log-determinant biases such results.
A test for each module of Pyro or torch inspects a caller's frame; it returns a description of the
exponentiated quantity, or None if the caller does not exponentiate.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FrameType

import torch
from torch import Tensor
from torch.distributions import Transform

from ...callers import callers, callers_in, module_of

FrameTest = Callable[[FrameType, torch.Size, int], str | None]
"""Function of a frame, the log-determinant's batch shape, and the points' event dimensions."""


def _always(quantity: str) -> FrameTest:
    return lambda frame, batch, event_dim: quantity


def _with_several_particles(quantity: str) -> FrameTest:
    """With one particle, the logarithm undoes the exponential and gives the log-density."""

    def test(frame: FrameType, batch: torch.Size, event_dim: int) -> str | None:
        return quantity if getattr(frame.f_locals.get("self"), "num_particles", 1) > 1 else None

    return test


def _laplace(frame: FrameType, batch: torch.Size, event_dim: int) -> str | None:
    matches = frame.f_code.co_name == "laplace_approximation"
    return "the Hessian of AutoLaplaceApproximation" if matches else None


def _weighed_predictive(frame: FrameType, batch: torch.Size, event_dim: int) -> str | None:
    matches = type(frame.f_locals.get("self")).__name__ == "WeighedPredictive"
    return "the weights of WeighedPredictive" if matches else None


def _experimental_design(frame: FrameType, batch: torch.Size, event_dim: int) -> str | None:
    """Nested estimates of an expected information gain average densities of some sites."""
    known = frame.f_locals
    if frame.f_code.co_name == "nmc_eig":
        labels = known["observation_labels"]
    elif "theta_y_dict" in known:  # inside the loss of vnmc_eig
        labels = [*known["observation_labels"], *known["target_labels"]]
    else:
        return None
    names = (
        inner.f_locals["name"] for inner in callers() if inner.f_code.co_name == "compute_log_prob"
    )
    is_averaged = next(names, None) in labels
    return "the nested averages of nmc_eig and vnmc_eig" if is_averaged else None


def _mixture(frame: FrameType, batch: torch.Size, event_dim: int) -> str | None:
    """Noise that all components share, for instance of one flow behind them all, factors out."""
    mixture = frame.f_locals.get("self")
    if frame.f_code.co_name != "log_prob":
        return None
    reinterpreted = len(getattr(mixture, "event_shape", ())) - event_dim
    differs = _size(batch, -1, reinterpreted) > 1
    return f"the sum over the components of {type(mixture).__name__}" if differs else None


def _enumeration(frame: FrameType, batch: torch.Size, event_dim: int) -> str | None:
    """Noise that does not depend on the model's enumerated variables factors out of the sum."""
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
    """The guide's own sites: the ELBO averages log-densities over them, without exponentials."""
    frame: FrameType | None = inner
    while frame is not None and frame is not outer:
        guide_trace = frame.f_locals.get("guide_trace")
        if guide_trace is not None:
            return set(guide_trace.nodes)
        frame = frame.f_back
    return set()


def _size(batch: torch.Size, dim: int, reinterpreted: int) -> int:
    """The size of a batch dimension, counted from the right without the reinterpreted ones."""
    index = len(batch) - max(reinterpreted, 0) + dim
    return batch[index] if index >= 0 else 1


EXPONENTIALS: dict[str, FrameTest] = {
    "pyro.infer.renyi_elbo": _with_several_particles("the bound of RenyiELBO"),
    "pyro.infer.rws": _with_several_particles("the weights of ReweightedWakeSleep"),
    "pyro.infer.trace_tail_adaptive_elbo": _always("the weights of TraceTailAdaptive_ELBO"),
    "pyro.infer.tracetmc_elbo": _always("the bound of TraceTMC_ELBO"),
    "pyro.infer.importance": _always("importance weights"),
    "pyro.infer.smcfilter": _always("the weights of SMCFilter"),
    "pyro.infer.resampler": _always("the weights of Resampler"),
    "pyro.infer.predictive": _weighed_predictive,
    "pyro.infer.autoguide.guides": _laplace,
    "pyro.infer.traceenum_elbo": _enumeration,
    "pyro.infer.discrete": _enumeration,
    "pyro.contrib.oed.eig": _experimental_design,
    "pyro.distributions.hmm": _mixture,
    "torch.distributions.mixture_same_family": _mixture,
}
"""The test for each module that may be among the callers."""


def exponentiated_quantity(transform: Transform, x: Tensor, y: Tensor) -> str | None:
    """Describe what a caller computes from the exponential of the log-determinant at (x, y).

    Args:
        transform: the transform.
        x: its input.
        y: its output.

    Returns:
        The description for an error message; None if no caller exponentiates.
    """
    for frame in callers_in(EXPONENTIALS):
        dims = transform.domain.event_dim, transform.codomain.event_dim
        batches = (t.shape[: t.dim() - dim] for t, dim in zip((x, y), dims, strict=True))
        test = EXPONENTIALS[module_of(frame)]
        quantity = test(frame, torch.broadcast_shapes(*batches), max(dims))
        if quantity is not None:
            return quantity
    return None
