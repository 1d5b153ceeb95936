"""Where zuko's flows differ from what their interface says, and between its versions."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Transform
from zuko import transforms as zuko_transforms
from zuko.flows import continuous, neural

from ..transforms.core.evaluation import call_and_ladj
from ..walk import modules_inside

LEADS_BACK_WITHIN = 1e-2
"""Relative error, of the way there and back, of an inverse that has been found. Searches to 1e-6
are off by a thousandth where a slope is a thousand; what stopped at a bound is off by far more."""

CLOSED_FORMS = frozenset(
    getattr(zuko_transforms, name, None)
    for name in ("MonotonicAffineTransform", "MonotonicRQSTransform", "AdditiveTransform")
)
"""Transforms of one variable that zuko inverts without a search."""

BY_MODE = (neural.MNN, neural.UMNN, continuous.FFJTransform)
"""What zuko 1.6 differentiates by its own weights in training mode alone."""

NARROWER_SLOPES = (1, 5)
"""The version from which affine maps and splines keep to slopes of 1e-3 and above, before 1e-4.
The same weights are another map since."""

_MODES = threading.RLock()


class ZukoInverseWarning(UserWarning):
    """An inverse of zuko's does not lead back to where it started."""


class ZukoVersionWarning(UserWarning):
    """Weights were saved under a version of zuko that makes another density of them."""


def searches(lazy: nn.Module) -> bool:
    """Whether a lazy transform may invert by a search, so that the result has to be checked."""
    return any(_searches(module) for module in modules_inside(lazy))


def _searches(module: nn.Module) -> bool:
    if isinstance(module, BY_MODE):
        return True
    univariate: Any = getattr(module, "univariate", None)
    while isinstance(univariate, partial):
        univariate = univariate.func
    return univariate is not None and univariate not in CLOSED_FORMS


def inverse_checked(transform: Transform, y: Tensor) -> tuple[Tensor, Tensor]:
    """x = transform.inv(y) and log|dy/dx| at it, with a warning where x does not lead back to y.

    zuko inverts functions of one variable by bisection between fixed bounds, and returns a bound
    where the root lies beyond.
    """
    x = transform.inv(y)
    back, ladj = call_and_ladj(transform, x)
    if not back.is_meta and back.numel():
        error = ((back - y).detach().abs() / y.detach().abs().clamp_min(1)).flatten(y.dim() - 1)
        lost = ~(error.amax(-1) <= LEADS_BACK_WITHIN)
        if bool(lost.any()):
            warnings.warn(
                f"zuko's inverse does not lead back for {int(lost.sum())} of {lost.numel()} "
                f"samples (largest error {float(error.max()):.2g}): these are no values of this "
                "flow's inverse. zuko's bisection looks between fixed bounds, by default -10 and "
                "10, and stops there. Leave these samples out, or take a flow with a closed "
                "inverse (MAF, NSF) or one of pyro_resflow's.",
                ZukoInverseWarning,
                stacklevel=2,
            )
    return x, ladj


@contextmanager
def differentiable_by_all_weights(lazy: nn.Module) -> Iterator[None]:
    """Within it, gradients reach all weights, in evaluation mode as in training mode."""
    parts = modules_inside(lazy) if torch.is_grad_enabled() else []
    if not any(isinstance(part, BY_MODE) for part in parts):
        yield
        return
    with _MODES:  # one call at a time: their mode is for all threads the same
        evaluating = [part for part in parts if isinstance(part, BY_MODE) and not part.training]
        for part in evaluating:
            part.training = True
        try:
            yield
        finally:
            for part in evaluating:
                part.training = False


def warn_of_another_version(saved: str | None, installed: str) -> None:
    """Warn if zuko makes another density of weights that were saved under another version.

    Args:
        saved: the version that the weights were saved under, ``None`` if it is not known.
        installed: the version that they are loaded under.
    """
    if saved is None:
        return
    before, now = (_release(version) >= NARROWER_SLOPES for version in (saved, installed))
    if before != now:
        warnings.warn(
            f"state_dict: saved under zuko {saved}, loaded under {installed}. Since 1.5 it keeps "
            "affine maps and splines to slopes of at least 1e-3, before to 1e-4, so that most "
            "flows (MAF, NSF, NICE, NCSF, SOSPF, UNAF) have another density with the same "
            f"weights. Install zuko=={saved}, or train again.",
            ZukoVersionWarning,
            stacklevel=2,
        )


def _release(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)
