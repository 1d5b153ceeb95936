"""Inspect the call stack to find out which algorithm called a method.

Pyro calls the same two methods of transforms and distributions for every purpose, and passes no
argument that tells the purpose. The call stack is the only source that covers all callers. Each
frame costs about a tenth of a microsecond, so inspect it only where the answer matters.
"""

from __future__ import annotations

import sys
from collections.abc import Container, Iterator
from types import FrameType

from torch.distributions import Distribution, TransformedDistribution

_LOG_PROB = TransformedDistribution.log_prob.__code__


def callers() -> Iterator[FrameType]:
    """The frames of the call stack, innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def callers_in(modules: Container[str]) -> list[FrameType]:
    """The frames of functions that are defined in certain modules, innermost first.

    Args:
        modules: names of the modules.
    """
    found = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") in modules:
            found.append(frame)
        frame = frame.f_back
    return found


LINEAR_BOUNDS = frozenset(
    {
        ("pyro.infer.trace_elbo", "Trace_ELBO"),
        ("pyro.infer.tracegraph_elbo", "TraceGraph_ELBO"),
        ("pyro.infer.trace_mean_field_elbo", "TraceMeanField_ELBO"),
    }
)
"""The modules and classes of the bounds of Pyro that are linear in log-densities and call them
from Python at every step; by name, because this module knows no Pyro."""

FOR_GRADIENTS = frozenset({"loss_and_grads", "differentiable_loss"})
"""The methods of a bound whose result is differentiated."""

_OF_LINEAR_BOUNDS = frozenset(module for module, _ in LINEAR_BOUNDS)


def is_inside_linear_bound() -> bool:
    """Whether a bound in :data:`LINEAR_BOUNDS` is among the callers, to be differentiated.

    A subclass does not count, because it may do anything with log-densities.
    """
    found = (f for f in callers_in(_OF_LINEAR_BOUNDS) if f.f_code.co_name in FOR_GRADIENTS)
    bounds = (type(frame.f_locals.get("self")) for frame in found)
    return any((each.__module__, each.__qualname__) in LINEAR_BOUNDS for each in bounds)


def is_validating() -> bool:
    """Whether the calling distribution validates its arguments; torch's default if none calls."""
    for frame in callers():
        if frame.f_code.co_name in ("log_prob", "sample", "rsample"):
            distribution = frame.f_locals.get("self")
            if isinstance(distribution, Distribution):
                return bool(distribution._validate_args)
    return bool(Distribution._validate_args)


def is_inside_log_prob() -> bool:
    """Whether ``TransformedDistribution.log_prob`` calls this package, with no other code between.

    That method takes the inverse of each transform immediately before its log-determinant.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and module_of(frame).startswith("pyro_resflow."):
        frame = frame.f_back
    return frame is not None and frame.f_code is _LOG_PROB


def module_of(frame: FrameType) -> str:
    """The name of the module that defines a frame's function."""
    return str(frame.f_globals.get("__name__", ""))
