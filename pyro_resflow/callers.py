"""Who is asking: the functions that led to a call, where no argument tells.

Pyro asks every transform and distribution by the same two methods, whoever needs the answer. The
call stack is the only trace that all of its callers leave. A step along it costs about a tenth of
a microsecond, so walk it only where a wrong answer is at stake.
"""

from __future__ import annotations

import sys
from collections.abc import Container, Iterator
from types import FrameType

from torch.distributions import Distribution


def callers() -> Iterator[FrameType]:
    """The frames of the functions that led here, the innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def callers_in(modules: Container[str]) -> list[FrameType]:
    """The frames among the callers whose functions stand in some modules, the innermost first.

    Args:
        modules: the modules' names.
    """
    found = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") in modules:
            found.append(frame)
        frame = frame.f_back
    return found


def is_validating() -> bool:
    """Whether the distribution that calls validates its values; torch's setting if none calls."""
    for frame in callers():
        if frame.f_code.co_name in ("log_prob", "sample", "rsample"):
            distribution = frame.f_locals.get("self")
            if isinstance(distribution, Distribution):
                return bool(distribution._validate_args)
    return bool(Distribution._validate_args)


def module_of(frame: FrameType) -> str:
    """The name of the module that a frame's function stands in."""
    return str(frame.f_globals.get("__name__", ""))
