"""Pareto-smoothed importance weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

LEAST_TAIL = 5
"""The smallest number of weights to which a tail is fitted, as in the paper."""

LEAST_DRAWS = 5 * LEAST_TAIL
"""The smallest number of draws whose tail, a fifth, has :data:`LEAST_TAIL` weights."""

EQUAL = 1e-3
"""Log weights that differ by less count as equal: a fitted tail would describe rounding errors,
and the weights would change an expectation by at most a thousandth of the draws' range."""

PRIOR_SHAPE, PRIOR_DRAWS = 0.5, 10
"""A prior for the shape: its value, and its weight in draws of the tail (Vehtari et al., appendix
C)."""

SMALLEST = math.log(np.finfo(np.float64).tiny)
"""Log weights below this are numerically zero relative to the largest, which is scaled to 0."""

TOO_FEW = f"too few draws: the shape of a tail takes at least {LEAST_DRAWS}"
ALL_EQUAL = "the weights are all equal: k is not defined, the guide fits where it draws"
TIED = (
    f"fewer than {LEAST_TAIL} weights are larger than the rest, which are equal: k is not "
    "defined; the number of effective draws is"
)
NOT_FINITE = "some weights are nan or infinite: k is not defined"


@dataclass(frozen=True)
class Smoothed:
    """Importance weights whose largest values are replaced by quantiles of a fitted Pareto tail.

    Attributes:
        log_weights: normalized log weights, shape ``(draws,)``.
        k: shape of the tail; nan if it is not defined.
        note: the reason if k is not defined, else empty.
    """

    log_weights: np.ndarray
    k: float
    note: str = ""

    @property
    def effective_draws(self) -> float:
        r""":math:`1 / \sum w^2`: the number of equally weighted draws with the same variance."""
        return float(1 / np.exp(2 * self.log_weights).sum())


def psis(log_weights: np.ndarray) -> Smoothed:
    r"""Smooth importance weights by a generalized Pareto distribution fitted to their tail.

    The tail consists of the :math:`M = \lceil\min(S/5,\, 3\sqrt S)\rceil` largest of S weights.
    The results do not depend on the version of ArviZ. If no tail can be fitted, the weights do
    not change and

    - for fewer than 25 draws, k is nan: too few draws;
    - if all weights are equal (to a thousandth), k is nan: the guide fits;
    - if fewer than five weights are larger than the rest and the rest is equal, k is nan;
    - if the tail's smaller weights are numerically zero in double precision, k is inf;
    - if a weight is nan or infinite, k and all weights are nan. A weight of zero is fine.

    Args:
        log_weights: logarithms of the weights, up to a constant, shape ``(draws,)``.

    Returns:
        The smoothed weights, k, and a note if k is not defined.

    Raises:
        ValueError: without draws, or for a wrong shape.

    Reference:
        Vehtari, Simpson, Gelman, Yao and Gabry, Pareto Smoothed Importance Sampling, 2024.

    Example:
        >>> import numpy as np
        >>> from pyro_resflow.interop.arviz import psis
        >>> round(psis(np.random.default_rng(0).exponential(0.4, size=10_000)).k, 1)
        0.4
        >>> psis(np.zeros(100)).note
        'the weights are all equal: k is not defined, the guide fits where it draws'
    """
    values = np.array(log_weights, dtype=np.float64)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"log_weights: expected the shape (draws,), got {values.shape}.")
    if np.isnan(values).any() or values.max() in (np.inf, -np.inf):
        return Smoothed(np.full_like(values, np.nan), math.nan, NOT_FINITE)
    values -= values.max()
    if values.size < LEAST_DRAWS:
        return Smoothed(_normalized(values), math.nan, TOO_FEW)
    if values.min() > -EQUAL:
        return Smoothed(_normalized(values), math.nan, ALL_EQUAL)
    k, note = _smooth_tail(values)
    return Smoothed(_normalized(values), k, note)


def _smooth_tail(values: np.ndarray) -> tuple[float, str]:
    """Replace the tail of log weights whose maximum is 0, and return k and a note."""
    size = math.ceil(min(values.size / 5, 3 * math.sqrt(values.size)))
    order = np.argsort(values)
    cutoff = values[order[-size - 1]]
    tail = order[-size:]
    tail = tail[values[tail] > cutoff]
    if len(tail) and values[tail[0]] < SMALLEST:
        return math.inf, ""
    if len(tail) < LEAST_TAIL:
        return math.nan, TIED
    excess = np.exp(values[tail]) - np.exp(cutoff)
    if not excess[_quartile(len(tail))] > 0:
        return math.nan, TIED
    shape, scale = fit_pareto(excess)
    ranks = (np.arange(len(tail)) + 0.5) / len(tail)
    smooth = np.log(pareto_quantiles(ranks, shape, scale) + np.exp(cutoff))
    values[tail] = np.minimum(smooth, 0.0)
    return shape, ""


def fit_pareto(excess: np.ndarray) -> tuple[float, float]:
    r"""Shape and scale of a generalized Pareto distribution.

    The parameter :math:`\theta = -k/\sigma` is averaged over a grid, weighted by the likelihood;
    the best k for each point is :math:`\operatorname{mean} \log(1 - \theta x)`. The shape is
    shrunk slightly towards 0.5.

    Args:
        excess: sorted positive numbers x.

    Reference:
        Zhang and Stephens, A New and Efficient Estimation Method for the Generalized Pareto
        Distribution, 2009.
    """
    number = len(excess)
    points = 30 + math.isqrt(number)
    grid = 1 - np.sqrt(points / (np.arange(points) + 0.5))
    theta = grid / (3 * excess[_quartile(number)]) + 1 / excess[-1]
    k = np.log1p(-np.multiply.outer(theta, excess)).mean(axis=1)
    likelihood = number * (np.log(-theta / k) - k - 1)
    weight = np.exp(_normalized(likelihood))
    best = float(weight @ theta)
    shape = float(np.log1p(-best * excess).mean())
    shrunk = (number * shape + PRIOR_DRAWS * PRIOR_SHAPE) / (number + PRIOR_DRAWS)
    return shrunk, -shape / best


def pareto_quantiles(ranks: np.ndarray, shape: float, scale: float) -> np.ndarray:
    """Quantiles of a generalized Pareto distribution."""
    exponents = -np.log1p(-ranks)
    return scale * (np.expm1(shape * exponents) / shape if shape else exponents)


def _quartile(number: int) -> int:
    """The index of the first quartile of sorted numbers."""
    return max(int(number / 4 + 0.5) - 1, 0)


def _normalized(values: np.ndarray) -> np.ndarray:
    """Log weights, shifted so that the weights sum to one."""
    return values - np.logaddexp.reduce(values)
