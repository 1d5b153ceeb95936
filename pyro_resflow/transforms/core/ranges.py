"""Checks of the range of a transform's input."""

from __future__ import annotations

import torch
from torch import Tensor

from ...callers import is_validating

ROUNDING = 8
"""How far outside the interval samples may lie by rounding, in units of the machine epsilon."""

BEYOND = 0.5
"""How far outside [0, 1] pixels may lie for a flow that is defined there.

It is far more than by which samples leave [0, 1], and too little for any integer above 1.
"""

BINS_BEYOND = 16
"""How many bins samples may lie outside [0, 1]: more than they do."""

REMEDY = (
    "Divide pixels of 0 .. 255 by 255, or score integers through "
    "pyro_resflow.distributions.Dequantized."
)


def check_interval(x: Tensor, low: float, high: float) -> None:
    """Raise unless all entries of ``x`` lie in an interval, up to rounding.

    Like distributions, it checks values only if ``pyro.enable_validation`` is on.

    Args:
        x: any shape.
        low: lower end.
        high: upper end.

    Raises:
        ValueError: naming the interval and the range of ``x``.
    """
    if not can_validate(x):
        return
    least, most = _extremes(x)
    slack = ROUNDING * torch.finfo(x.dtype).eps
    if least < low - slack or most > high + slack:
        raise ValueError(
            f"x: expected values in [{low:.4g}, {high:.4g}], where the logit is defined, got "
            f"values from {least:.4g} to {most:.4g}. {REMEDY}"
        )


def check_near_unit_interval(x: Tensor, bins: int) -> None:
    """Raise if an entry of ``x`` is farther from [0, 1] than :data:`BEYOND` and 16 bins.

    Samples of a flow that is defined on all real numbers may leave [0, 1] a little.

    Args:
        x: any shape.
        bins: number of bins of [0, 1]; samples leave it by a few of them.

    Raises:
        ValueError: naming the expected range and the range of ``x``.
    """
    if not can_validate(x):
        return
    least, most = _extremes(x)
    beyond = max(BEYOND, BINS_BEYOND / bins)
    if least < -beyond or most > 1 + beyond:
        raise ValueError(
            f"x: expected pixels in [0, 1], got values from {least:.4g} to {most:.4g}. {REMEDY}"
        )


def check_not_pixels(x: Tensor) -> None:
    """Raise if all entries of ``x`` are integers and some exceed 1: pixels not scaled to [0, 1].

    A flow without a logit is defined on all real numbers, and its samples may leave [0, 1]; but
    they are not all integers.

    Args:
        x: images, shape ``(*batch, C, H, W)``.

    Raises:
        ValueError: naming the expected range and the range of ``x``.
    """
    if not can_validate(x):
        return
    least, most = _extremes(x)
    if most > 1 and bool((x == x.floor()).all()):
        raise ValueError(
            f"images: expected values in [0, 1], got integers from {least:.4g} to {most:.4g}. "
            f"{REMEDY}"
        )


def _extremes(x: Tensor) -> tuple[float, float]:
    """The smallest and the largest entry, with a single device synchronisation."""
    least, most = torch.stack(torch.aminmax(x.detach())).tolist()
    return least, most


def can_validate(x: Tensor) -> bool:
    """Whether validation is on and ``x`` has values: it is not empty, meta or being traced."""
    return (
        not torch.compiler.is_compiling()
        and bool(is_validating())
        and x.numel() > 0
        and not x.is_meta
        and not torch._C._is_tracing()
        and not torch._C._are_functorch_transforms_active()
    )
