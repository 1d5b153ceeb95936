"""A posterior in closed form, and the differences between ArviZ 0.x and 1."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormalizingFlow
from torch import Tensor

from pyro_resflow import residual_flow
from pyro_resflow.logdet import Exact, Krylov

Y = torch.tensor([0.3, -1.2, 2.0, 0.7, 1.1])


def conjugate(y: Tensor) -> None:
    """A normal mean with a standard normal prior."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("person", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def posterior_guide(y: Tensor, widening: float = 1.0) -> None:
    """Its exact posterior, or a wider one."""
    n = len(y) + 1
    pyro.sample("mu", dist.Normal(y.sum() / n, widening / math.sqrt(n)))


def log_evidence(y: Tensor) -> float:
    covariance = torch.eye(len(y)) + 1
    return dist.MultivariateNormal(torch.zeros(len(y)), covariance).log_prob(y).item()


def exact_loo(y: Tensor) -> np.ndarray:
    """log p(y_i | the others), one by one."""
    n = len(y)
    mean = (y.sum() - y) / n
    return dist.Normal(mean, math.sqrt(1 + 1 / n)).log_prob(y).numpy()


class RefusingKrylov(Krylov):
    """An estimator that is not to be asked."""

    def __call__(self, *args: object) -> tuple[Tensor, Tensor]:
        raise AssertionError("an estimate was about to enter a weight")


def flow_guide(model: object, estimator: Krylov | Exact) -> AutoNormalizingFlow:
    return AutoNormalizingFlow(
        model, partial(residual_flow, blocks=2, hidden_dims=[8], logdet=estimator)
    )


class Counted:
    """A model, or a guide, that counts its runs."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.runs = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.runs += 1
        return self.function(*args, **kwargs)


def groups(data: Any) -> set[str]:
    """The groups of a container: a method in ArviZ 0.x, paths in ArviZ 1."""
    names = data.groups() if callable(data.groups) else data.groups
    return {name.strip("/") for name in names} - {""}


def elpd(result: Any) -> tuple[float, float, float, np.ndarray, np.ndarray]:
    """Total, standard error, effective parameters, terms and k of an ELPDData."""
    if hasattr(result, "elpd_i"):
        total, parameters, terms = result.elpd, result.p, result.elpd_i
    else:
        total, parameters, terms = result.elpd_loo, result.p_loo, result.loo_i
    return total, result.se, parameters, terms.values, result.pareto_k.values
