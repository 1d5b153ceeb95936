r"""Nodes and weights for :math:`\log(1 + z) = \int_0^1 \frac{z}{1 + tz}\,dt` on the unit disc.

The integrand has a pole at :math:`t = -1/z`, which approaches t = 1 as z approaches -1. The
substitution :math:`1 - t = \eta\,((1 + 1/\eta)^x - 1)` spreads the nodes evenly over the orders of
magnitude of the distance :math:`|1 + z|`, from 1 down to about :math:`\eta`, and keeps the pole at
about the same distance for each of them.

The error of a rational approximation r of f on the unit disc also bounds its error for matrices:
:math:`\|r(H) - f(H)\| \le \max_{|z| \le 1} |r(z) - f(z)|` for :math:`\|H\| \le 1` (von Neumann's
inequality), whether H is normal or not.

References:
    Hale and Trefethen, New quadrature formulas from conformal maps, 2008; Kosloff and Tal-Ezer,
    1993 (the map that spreads the nodes); Higham, Functions of Matrices, 2008, chapter 11.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor


class Rule(NamedTuple):
    """The quadrature rule of a precision.

    Attributes:
        nodes: number of nodes.
        closest: eta, the smallest distance of a spectrum from -1 that is resolved.
    """

    nodes: int
    closest: float


# The largest error on the disc, relative to the larger of 1 and |log(1 + z)|, is 1.3e-7 and 8e-14
# for distances from -1 down to `closest`. Closer to -1, the rounding of z is the larger error.
SINGLE = Rule(nodes=32, closest=2.0**-23)
DOUBLE = Rule(nodes=96, closest=1e-11)

_EVENNESS = 0.9
"""How evenly the nodes in (0, 1) are spaced: 0 gives Legendre's, dense at the ends; 1 is even."""


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def log_quadrature(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Nodes t in (0, 1) and weights, each of shape ``(T,)``."""
    rule = DOUBLE if dtype == torch.float64 else SINGLE
    y, weights = _gauss_legendre(rule.nodes)
    scale = math.asin(_EVENNESS)
    x = ((_EVENNESS * y).asin() / scale + 1) / 2
    weights = weights * _EVENNESS / (2 * scale) / (1 - (_EVENNESS * y).square()).sqrt()
    magnitudes = math.log1p(1 / rule.closest)
    nodes = -(1 + rule.closest) * torch.expm1(magnitudes * (x - 1))
    weights = weights * magnitudes * (1 + rule.closest) * torch.exp(magnitudes * (x - 1))
    return nodes.to(device, dtype), weights.to(device, dtype)


def _gauss_legendre(number: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [-1, 1] (Golub and Welsch)."""
    k = torch.arange(1, number, dtype=torch.float64, device="cpu")
    off_diagonal = k / (4 * k * k - 1).sqrt()
    nodes, vectors = torch.linalg.eigh(off_diagonal.diag(1) + off_diagonal.diag(-1))
    return nodes, 2 * vectors[0].square()
