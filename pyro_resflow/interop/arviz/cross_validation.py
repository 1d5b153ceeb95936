"""Leave-one-out cross-validation from draws of a guide."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np

from .library import LIBRARY, Container, group_of
from .smoothing import LEAST_DRAWS, psis

FEW_EFFECTIVE_DRAWS = 100
"""With fewer, the weighted estimate is mostly noise; see the comparison on the ArviZ page."""


def loo(data: Container, var_name: str | None = None) -> Any:
    r"""Leave-one-out cross-validation by smoothed importance sampling, from draws of a guide.

    Leaving out observation i weights draw z by :math:`w(z) / p(x_i | z)`. ``az.loo`` uses
    :math:`w = 1`, as if the guide were the posterior; here :math:`w = p(z, x) / q(z)`, the
    ``log_weight`` of :func:`from_svi`. Data without ``log_weight``, from MCMC, have w = 1.

    Args:
        data: a container with the group ``log_likelihood``.
        var_name: the observed site; default: the only one.

    Returns:
        ArviZ's own ``ELPDData``, with the pointwise values, for ``az.compare`` and
        ``az.plot_khat``. In ArviZ 0.x its entries are ``elpd_loo``, ``se``, ``p_loo``, ``loo_i``
        and ``pareto_k``; in ArviZ 1 ``elpd``, ``se``, ``p``, ``elpd_i`` and ``pareto_k``.

    Raises:
        ValueError: if there is no log likelihood, or several observed sites and no ``var_name``.

    Warns:
        UserWarning: if k of an observation is above :math:`\min(1 - 1/\log_{10} S, 0.7)` for S
            draws, and if the weights w leave fewer than 100 effective draws.

    Reference:
        Magnusson, Andersen, Jonasson and Vehtari, Bayesian leave-one-out cross-validation for
        large data, 2019, section 2.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> from pyro_resflow.interop.arviz import from_svi, loo
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("person", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> def guide(y):
        ...     pyro.sample("mu", dist.Normal(y.sum() / (len(y) + 1), 0.5))
        >>> data = from_svi(model, guide, torch.tensor([0.3, -1.2, 2.0]))
        >>> loo(data).n_data_points
        3
    """
    likelihood = _log_likelihood(data, var_name)
    shape = likelihood.shape
    each = np.asarray(likelihood, dtype=np.float64).reshape(shape[0] * shape[1], -1).T
    stats = group_of(data, "sample_stats")
    weighted = "log_weight" in stats
    weight = np.asarray(stats["log_weight"]).ravel() if weighted else np.zeros(each.shape[1])
    whole = psis(weight)
    left_out = [psis(weight - one) for one in each]
    pointwise = np.logaddexp.reduce([w.log_weights for w in left_out] + each, axis=1)
    density = np.logaddexp.reduce(whole.log_weights + each, axis=1)
    k = np.array([w.k for w in left_out])
    good_k = good_shape(each.shape[1])
    _warn_if_heavy_tailed(k, good_k, each.shape[1])
    _warn_if_few_effective(whole.effective_draws, each.shape[1])

    def over_observations(values: np.ndarray) -> Any:
        return likelihood[0, 0].drop_vars(["chain", "draw"]).copy(data=values.reshape(shape[2:]))

    return LIBRARY.elpd(
        total=float(pointwise.sum()),
        error=standard_error(pointwise),
        parameters=float((density - pointwise).sum()),
        draws=each.shape[1],
        pointwise=over_observations(pointwise),
        pareto_k=over_observations(k),
        good_k=good_k,
        weighted=weighted,
    )


def standard_error(terms: np.ndarray) -> float:
    """The standard error of a sum of independent terms; nan for a single term.

    It divides by n - 1 as ArviZ 1; ArviZ 0.x divides by n.
    """
    return math.sqrt(terms.size * terms.var(ddof=1)) if terms.size > 1 else math.nan


def good_shape(draws: int) -> float:
    """The largest shape at which this many draws are reliable (Vehtari et al., 2024)."""
    return min(1 - 1 / math.log10(draws), 0.7) if draws > 1 else -math.inf


def _warn_if_heavy_tailed(k: np.ndarray, good_k: float, draws: int) -> None:
    if draws < LEAST_DRAWS:
        warnings.warn(
            f"loo: expected at least {LEAST_DRAWS} draws to compute k, got {draws}.", stacklevel=3
        )
    if (k > good_k).any():
        warnings.warn(
            f"loo: Pareto's k is above {good_k:.2f} for {(k > good_k).sum()} of {k.size} "
            f"observations, the largest is {np.nanmax(k):.2f}: the estimate is unreliable for "
            "them. Fit a better guide, or sample the posterior with NUTS.",
            stacklevel=3,
        )


def _warn_if_few_effective(effective: float, draws: int) -> None:
    if effective < min(FEW_EFFECTIVE_DRAWS, draws / 2):
        warnings.warn(
            f"loo: the weights leave {effective:.0f} effective draws of {draws}, so that the "
            "estimate is mostly noise; az.loo, which treats the guide as the posterior, may be "
            "more accurate. Fit a better guide, draw more, or sample with NUTS.",
            stacklevel=3,
        )


def _log_likelihood(data: Container, var_name: str | None) -> Any:
    """The log likelihood of one site, dimensions ``(chain, draw, *observations)``."""
    group = group_of(data, "log_likelihood")
    names = [str(name) for name in group]
    if var_name is None and len(names) == 1:
        var_name = names[0]
    if var_name not in names:
        raise ValueError(f"var_name: expected one of the observed sites {names}, got {var_name}.")
    return group[var_name]
