"""The range that numbers lie in: a wrong one is an error, and not a density."""

from __future__ import annotations

import torch
from torch import Tensor

from ...callers import is_validating

ROUNDING = 8
"""Units of rounding beyond an interval that a transform's own samples may lie."""

REMEDY = (
    "Divide pixels of 0 .. 255 by 255, or score integers through "
    "pyro_resflow.distributions.Dequantized."
)


def check_interval(x: Tensor, low: float, high: float) -> None:
    """Raise unless all entries of ``x`` lie in an interval, up to rounding.

    It looks at the values, as distributions do, where ``pyro.enable_validation`` is on.

    Args:
        x: any shape.
        low: lower end.
        high: upper end.

    Raises:
        ValueError: saying what was expected and what was given.
    """
    if not _may_look_at(x):
        return
    least, most = _extremes(x)
    slack = ROUNDING * torch.finfo(x.dtype).eps
    if least < low - slack or most > high + slack:
        raise ValueError(
            f"x: expected values in [{low:.4g}, {high:.4g}], where the logit is defined, got "
            f"values from {least:.4g} to {most:.4g}. {REMEDY}"
        )


def check_not_pixels(x: Tensor) -> None:
    """Raise if ``x`` holds integers above 1 alone: pixels that have not been scaled to [0, 1].

    A flow without a logit is defined on all numbers, and its own samples leave [0, 1]; but they
    are no integers.

    Args:
        x: images, shape ``(*batch, C, H, W)``.

    Raises:
        ValueError: saying what was expected and what was given.
    """
    if not _may_look_at(x):
        return
    least, most = _extremes(x)
    if most > 1 and bool((x == x.floor()).all()):
        raise ValueError(
            f"images: expected values in [0, 1], got integers from {least:.4g} to {most:.4g}. "
            f"{REMEDY}"
        )


def _extremes(x: Tensor) -> tuple[float, float]:
    """The least and the largest entry, for which a device is waited for once."""
    least, most = torch.stack(torch.aminmax(x.detach())).tolist()
    return least, most


def _may_look_at(x: Tensor) -> bool:
    """Whether validation is on, and ``x`` holds numbers and is no stand-in for others."""
    return (
        not torch.compiler.is_compiling()
        and bool(is_validating())
        and x.numel() > 0
        and not x.is_meta
        and not torch._C._is_tracing()
        and not torch._C._are_functorch_transforms_active()
    )
