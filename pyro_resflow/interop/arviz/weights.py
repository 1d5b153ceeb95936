"""Diagnose the reliability of importance weights."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

from pyro.poutine import Trace

from .datasets import as_array
from .draws import Draws, Model, point_masses
from .evaluation import Evaluation, GuideLatents
from .smoothing import LEAST_DRAWS, Smoothed, psis


def pareto_k(
    guide: Model,
    *args: Any,
    model: Model | None = None,
    num_samples: int = 1000,
    max_plate_nesting: int | None = None,
    chunk_size: int | None = None,
    **kwargs: Any,
) -> float:
    r"""The Pareto shape of the tail of :math:`p(z, x) / q(z)`, z drawn from the guide.

    Below 0.5 the ratio has a finite variance; up to 0.7 importance weights correct the guide;
    above that, expectations under the guide are not those of the posterior. The draws cover only
    the region of the guide: a mode that it misses altogether is not detected.

    Args:
        guide: the fitted guide.
        args: arguments of the model and the guide.
        model: the model; default: that of an autoguide.
        num_samples: number of draws, at least 25.
        max_plate_nesting: see :func:`from_svi`.
        chunk_size: see :func:`from_svi`; a draw runs the guide and the model once.
        kwargs: keyword arguments of the model and the guide.

    Returns:
        k; or nan, with a warning that gives the reason, if it is not defined: for equal weights,
        as of a guide that equals the posterior, and for a guide that is a point.

    Raises:
        ValueError: if the guide does not know its model and none is given, for fewer than 25
            draws, and as :func:`from_svi`.

    Reference:
        Yao, Vehtari, Simpson and Gelman, Yes, but Did It Work?: Evaluating Variational Inference,
        2018.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro_resflow.interop.arviz import pareto_k
        >>> def model():
        ...     pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> def guide():
        ...     pyro.sample("z", dist.Normal(0.0, 2.0))
        >>> pareto_k(guide, model=model) < 0.5
        True
    """
    if num_samples < LEAST_DRAWS:
        raise ValueError(
            f"num_samples: expected at least {LEAST_DRAWS} draws, to fit the shape of a tail, got "
            f"{num_samples}."
        )
    model = model if model is not None else getattr(guide, "model", None)
    if model is None:
        raise ValueError(
            "model: expected a model, because this guide has no attribute model as autoguides do, "
            "got None; pass model=..."
        )
    latents = GuideLatents(guide, args, kwargs)
    evaluation = Evaluation(model, latents, args, kwargs, predictive=False)
    single = evaluation.one(0)
    draws = evaluation.draws(num_samples, single, max_plate_nesting, chunk_size)
    smoothed = smoothed_weights(draws, single.model)
    if smoothed.note:
        warnings.warn(f"pareto_k: {smoothed.note}.", stacklevel=2)
    return smoothed.k


def smoothed_weights(draws: Draws, trace: Trace) -> Smoothed:
    """The smoothed weights of draws of a guide; k is nan for a guide that is a point."""
    smoothed = psis(as_array(draws.log_weight))
    points = point_masses(trace, draws)
    if not points:
        return smoothed
    return replace(
        smoothed,
        k=math.nan,
        note=f"the guide has a single value of {', '.join(points)}: a point has no density, and "
        "the weights say nothing about it",
    )
