r"""Russian roulette: a random number of further terms that leaves the sum's expectation alone.

For a random number N of further terms, :math:`E[\sum_{j=1}^{N} a_j / P(N \ge j)]
= \sum_{j=1}^\infty a_j`. Its variance is finite if the tail :math:`P(N \ge j)` falls more slowly
than :math:`a_j^2`.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch

from ..rebuilding import Rebuildable


class Tail(Protocol):
    """A distribution of the number N of terms beyond those always taken."""

    def draw(self, generator: torch.Generator | None) -> int:
        """Draw N."""

    def survival(self, j: int) -> float:
        """P(N >= j)."""


class Geometric(Rebuildable):
    r"""P(N >= j) = ratio^j; the mean of N is ratio / (1 - ratio).

    Args:
        ratio: in [0, 1). The variance of a series whose terms fall like :math:`\rho^k` is finite
            for a ratio above :math:`\rho^2`.

    Raises:
        ValueError: for a ratio outside [0, 1).
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
    r"""N is Poisson distributed.

    The published setting. Its tail falls faster than any geometric one, so that the variance of
    the estimate is formally infinite; :class:`Geometric` is the better choice.

    Args:
        rate: mean of N.

    Raises:
        ValueError: for a rate that is not positive.
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
    """N = 0: a plain truncation, biased by what it leaves out."""

    def draw(self, generator: torch.Generator | None) -> int:
        return 0

    def survival(self, j: int) -> float:
        return 1.0 if j == 0 else 0.0
