"""How far importance weights can be trusted, and leave-one-out cross-validation with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro import poutine

from .draws import Model, check_number, exact_densities, prototypes, replayed
from .version import arviz as az


def pareto_k(
    guide: Model, *args: Any, model: Model | None = None, num_samples: int = 1000, **kwargs: Any
) -> float:
    r"""The Pareto shape of the tail of :math:`p(z, x) / q(z)`, z drawn from the guide.

    Below 0.5 the ratio has a finite variance; up to 0.7 importance weights repair the guide; above
    that, expectations under the guide are not those of the posterior.

    Args:
        guide: the fitted guide.
        args: arguments of the model and the guide.
        model: the model; default: that of an autoguide.
        num_samples: number of draws.
        kwargs: keyword arguments of the model and the guide.

    Raises:
        ValueError: if the guide has no model of its own and none is given, and as
            :func:`from_svi`.

    Reference:
        Yao, Vehtari, Simpson and Gelman, Yes, but Did It Work?: Evaluating Variational Inference,
        2018.
    """
    check_number(num_samples)
    model = model if model is not None else getattr(guide, "model", None)
    if model is None:
        raise ValueError(
            "model: this guide does not know its model, as autoguides do; pass model=..."
        )
    with torch.no_grad(), exact_densities(prototypes(model, guide, args, kwargs)):
        weights = []
        for _ in range(num_samples):
            latents = poutine.trace(guide).get_trace(*args, **kwargs)
            lp = float(replayed(model, latents, args, kwargs).log_prob_sum())
            weights.append(lp - float(latents.log_prob_sum()))
    return tail_shape(np.array(weights))


@dataclass(frozen=True)
class Loo:
    """Leave-one-out cross-validation.

    Attributes:
        elpd: expected log density of a new observation, summed over the observations.
        se: its standard error.
        p_loo: effective number of parameters.
        pointwise: the terms of ``elpd``, of the shape of the observations.
        pareto_k: for each of them the shape of the weights' tail; above 0.7 it cannot be trusted.
    """

    elpd: float
    se: float
    p_loo: float
    pointwise: np.ndarray
    pareto_k: np.ndarray


def loo(data: az.InferenceData, var_name: str | None = None) -> Loo:
    r"""Leave-one-out cross-validation by smoothed importance sampling, from draws of a guide.

    Leaving out observation i weighs draw z by :math:`w(z) / p(x_i | z)`. ``az.loo`` takes
    :math:`w = 1`, as if the guide were the posterior; here :math:`w = p(z, x) / q(z)`, the
    ``log_weight`` of :func:`from_svi`. Data without ``log_weight``, of MCMC, have w = 1.

    Args:
        data: with the group ``log_likelihood``.
        var_name: the observed site; default: the only one.

    Raises:
        ValueError: without log likelihood, or if there are several observed sites and no name.

    Reference:
        Magnusson, Andersen, Jonasson and Vehtari, Bayesian leave-one-out cross-validation for
        large data, 2019, section 2.
    """
    log_likelihood = _log_likelihood(data, var_name)
    shape = log_likelihood.shape[2:]
    each = log_likelihood.reshape(log_likelihood.shape[0] * log_likelihood.shape[1], -1).T
    stats = data["sample_stats"] if "sample_stats" in data.groups() else {}
    log_weight = np.asarray(stats["log_weight"]).ravel() if "log_weight" in stats else 0.0
    left_out, k = az.psislw(log_weight - each)
    whole, _ = az.psislw(np.broadcast_to(log_weight, each.shape[1:]))
    pointwise = np.logaddexp.reduce(left_out + each, axis=1)
    density = np.logaddexp.reduce(whole + each, axis=1)
    return Loo(
        elpd=float(pointwise.sum()),
        se=float(np.sqrt(len(pointwise) * pointwise.var())),
        p_loo=float((density - pointwise).sum()),
        pointwise=pointwise.reshape(shape),
        pareto_k=np.asarray(k).reshape(shape),
    )


def _log_likelihood(data: az.InferenceData, var_name: str | None) -> np.ndarray:
    """The log likelihood of one site, shape ``(chain, draw, *observations)``."""
    group = data["log_likelihood"] if "log_likelihood" in data.groups() else {}
    names = [str(name) for name in group]
    if var_name is None and len(names) == 1:
        var_name = names[0]
    if var_name not in names:
        raise ValueError(f"var_name: expected one of the observed sites {names}, got {var_name}.")
    return np.asarray(group[var_name])


def tail_shape(log_weights: np.ndarray) -> float:
    """Pareto's k of some weights, given their logarithms, shape ``(draws,)``."""
    return float(az.psislw(log_weights)[1])
