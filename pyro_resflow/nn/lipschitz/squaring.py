r"""The leading eigenvectors of small symmetric matrices, by repeated squaring.

Eight squarings of a matrix give its 256th power. One product with that power is 256 steps of the
power method, in a few operations on all matrices at once. For matrices of up to
:data:`SQUARED_SIDE` rows this is faster than a Krylov space, which takes a dozen operations for
each of its steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .directions import unit

SQUARED_SIDE = 64
"""Largest side of a matrix that is squared. The cost of a squaring grows with the third power of
the side, the cost of a step in a Krylov space with the second."""

SCALINGS = 2
"""How often a matrix is divided by its largest entry before squarings that could overflow."""

SQUARINGS_BETWEEN = 4
"""Squarings after each division. The largest eigenvalue of a positive semidefinite matrix with
n rows and largest entry 1 is at most n; the 16th power of 64 is far below float32's limit."""


class GramPower:
    r"""The :math:`2^8`-th powers of symmetric positive semidefinite matrices.

    Args:
        matrices: shape ``(L, n, n)``.
        scalings: how often matrices are divided by their largest entries; each division more
            gives the 16th power of the power before.
    """

    def __init__(self, matrices: Tensor, scalings: int = SCALINGS) -> None:
        self.matrices = _with_largest_entry_one(matrices)
        power = self.matrices
        for k in range(scalings):
            power = _with_largest_entry_one(power) if k else power
            for _ in range(SQUARINGS_BETWEEN):
                power = torch.bmm(power, power)
        self.power = _with_largest_entry_one(power)

    def cycle(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Two steps of the power method with the power.

        Args:
            vectors: the start vectors, shape ``(L, n)``.

        Returns:
            The eigenvectors, ``(L, n)``; the eigenvalues, ``(L,)``, in units of the matrices'
            largest entries; and the increase of these in the last step, ``(L,)``.
        """
        first, before = self._step(vectors)
        second, values = self._step(first)
        return second, values, values - before

    def _step(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Multiply vectors by the power; return unit vectors and their Rayleigh quotients."""
        vectors = unit(torch.bmm(self.power, vectors[..., None]).squeeze(-1))
        images = torch.bmm(self.matrices, vectors[..., None]).squeeze(-1)
        return vectors, torch.linalg.vecdot(vectors, images)


def _with_largest_entry_one(matrices: Tensor) -> Tensor:
    """Divide each matrix by its largest entry; a zero matrix stays zero.

    The largest entry of a positive semidefinite matrix is on its diagonal.
    """
    largest = matrices.diagonal(dim1=1, dim2=2).amax(1)
    return matrices / largest.clamp_min(torch.finfo(matrices.dtype).tiny)[:, None, None]
