"""Work around differences of zuko's flows from their interface, and between its versions."""

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

ROUND_TRIP_TOLERANCE = 1e-2
"""The largest relative round-trip error of a successful inverse. A search to 1e-6 is off by a
thousandth where the slope is a thousand; a search that stopped at a bound is off by far more."""

CLOSED_FORMS = frozenset(
    getattr(zuko_transforms, name, None)
    for name in ("MonotonicAffineTransform", "MonotonicRQSTransform", "AdditiveTransform")
)
"""Transforms of one variable that zuko inverts without a search."""

TRAINING_MODE_ONLY = (neural.MNN, neural.UMNN, continuous.FFJTransform)
"""Modules whose weights get gradients in zuko 1.6 only in training mode."""

NARROWER_SLOPES = (1, 5)
"""The version that raised the smallest slope of affine maps and splines from 1e-4 to 1e-3. Since
then the same weights give another map."""

_MODES = threading.RLock()


class ZukoInverseWarning(UserWarning):
    """An inverse computed by zuko does not reproduce its input."""


class ZukoVersionWarning(UserWarning):
    """Weights were saved under a version of zuko in which they have a different density."""


def searches(lazy: nn.Module) -> bool:
    """Whether a lazy transform may invert by a search, so that its result must be checked."""
    return any(_searches(module) for module in modules_inside(lazy))


def _searches(module: nn.Module) -> bool:
    if isinstance(module, TRAINING_MODE_ONLY):
        return True
    univariate: Any = getattr(module, "univariate", None)
    while isinstance(univariate, partial):
        univariate = univariate.func
    return univariate is not None and univariate not in CLOSED_FORMS


def inverse_checked(transform: Transform, y: Tensor) -> tuple[Tensor, Tensor]:
    """x = transform.inv(y) and log|dy/dx| at x, with a warning if x does not reproduce y.

    zuko inverts functions of one variable by bisection between fixed bounds, and returns a bound
    if the root lies outside.
    """
    x = transform.inv(y)
    back, ladj = call_and_ladj(transform, x)
    if not back.is_meta and back.numel():
        error = ((back - y).detach().abs() / y.detach().abs().clamp_min(1)).flatten(y.dim() - 1)
        failed = ~(error.amax(-1) <= ROUND_TRIP_TOLERANCE)
        if bool(failed.any()):
            warnings.warn(
                f"zuko's inverse is wrong for {int(failed.sum())} of {failed.numel()} samples: "
                "mapping them forward does not reproduce the input (largest error "
                f"{float(error.max()):.2g}). zuko's bisection searches between fixed bounds, by "
                "default -10 and 10, and stops there. Leave these samples out, or use a flow with "
                "a closed-form inverse (MAF, NSF) or one of pyro_resflow's flows.",
                ZukoInverseWarning,
                stacklevel=2,
            )
    return x, ladj


@contextmanager
def differentiable_by_all_weights(lazy: nn.Module) -> Iterator[None]:
    """Let gradients reach all weights in evaluation mode too."""
    parts = modules_inside(lazy) if torch.is_grad_enabled() else []
    if not any(isinstance(part, TRAINING_MODE_ONLY) for part in parts):
        yield
        return
    with _MODES:  # one call at a time: all threads share the mode of a module
        modules = (part for part in parts if isinstance(part, TRAINING_MODE_ONLY))
        evaluating = [module for module in modules if not module.training]
        for part in evaluating:
            part.training = True
        try:
            yield
        finally:
            for part in evaluating:
                part.training = False


def warn_of_another_version(saved: str | None, installed: str) -> None:
    """Warn if weights have different densities under the two versions of zuko.

    Args:
        saved: the version under which the weights were saved, ``None`` if unknown.
        installed: the version under which they are loaded.
    """
    if saved is None:
        return
    before, now = (_release(version) >= NARROWER_SLOPES for version in (saved, installed))
    if before != now:
        warnings.warn(
            f"state_dict: saved under zuko {saved}, loaded under {installed}. zuko 1.5 raised the "
            "smallest slope of affine maps and splines from 1e-4 to 1e-3, so that most flows "
            "(MAF, NSF, NICE, NCSF, SOSPF, UNAF) have another density with the same weights. "
            f"Install zuko=={saved}, or train again.",
            ZukoVersionWarning,
            stacklevel=2,
        )


def _release(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)
