r"""Distributions of the number of random terms in a Russian roulette estimator.

For a random number N of further terms, :math:`E[\sum_{j=1}^{N} a_j / P(N \ge j)]
= \sum_{j=1}^\infty a_j`. The variance of this sum is finite if the tail :math:`P(N \ge j)`
decreases more slowly than :math:`a_j^2`.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch

from ..rebuilding import Rebuildable


class Tail(Protocol):
    """A distribution of N, the number of random terms beyond the fixed ones."""

    def draw(self, generator: torch.Generator | None) -> int:
        """Draw N."""

    def survival(self, j: int) -> float:
        """P(N >= j)."""


class Geometric(Rebuildable):
    r"""A geometric tail, :math:`P(N \ge j) = r^j`, with mean :math:`r / (1 - r)`.

    Args:
        ratio: r in [0, 1). If the terms of the series decrease like :math:`\rho^k`, the variance
            of the estimate is finite for :math:`r > \rho^2`.

    Raises:
        ValueError: for a ratio outside [0, 1).

    Example:
        >>> from pyro_resflow.logdet import Geometric
        >>> Geometric(0.5).survival(3)
        0.125
    """

    def __init__(self, ratio: float = 0.5) -> None:
        if not 0 <= ratio < 1:
            raise ValueError(f"ratio: expected a number in [0, 1), got {ratio}.")
        self.ratio = ratio

    def draw(self, generator: torch.Generator | None) -> int:
        uniform = float(torch.rand((), generator=generator, device="cpu", dtype=torch.float64))
        if uniform == 0 or self.ratio == 0:
            return 0
        return int(math.log(uniform) / math.log(self.ratio))

    def survival(self, j: int) -> float:
        return self.ratio**j


class Poisson(Rebuildable):
    r"""A Poisson tail, as in the published setting.

    It decreases faster than any geometric tail. For terms that decrease geometrically the variance
    of the estimate is infinite, and :class:`Geometric` is the better choice.

    Args:
        rate: mean of N.

    Raises:
        ValueError: if the rate is not positive.
    """

    def __init__(self, rate: float = 2.0) -> None:
        if not rate > 0:
            raise ValueError(f"rate: expected a positive number, got {rate}.")
        self.rate = rate

    def draw(self, generator: torch.Generator | None) -> int:
        rate = torch.tensor(self.rate, dtype=torch.float64, device="cpu")
        return int(torch.poisson(rate, generator=generator))

    def survival(self, j: int) -> float:
        if j == 0:
            return 1.0
        shape = torch.tensor(float(j), dtype=torch.float64, device="cpu")
        rate = torch.tensor(self.rate, dtype=torch.float64, device="cpu")
        return float(torch.special.gammainc(shape, rate))


class NoTail(Rebuildable):
    """No random terms, N = 0: a plain truncation, biased by the sum of the omitted terms."""

    def draw(self, generator: torch.Generator | None) -> int:
        return 0

    def survival(self, j: int) -> float:
        return 1.0 if j == 0 else 0.0
