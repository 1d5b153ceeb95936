"""The largest eigenvector of symmetric maps by the Lanczos process, of several maps at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .directions import unit

NEGLIGIBLE = 10
"""Times eps and the length of a vector: the most that rounding leaves of it if a basis spans it.
A longer remainder is a new direction."""

SMALLEST_LENGTH = 1e-30
"""Shorter vectors count as this long: NEGLIGIBLE eps times it does not underflow in float32."""

SWEEPS = 2
"""Of Gram-Schmidt. The second removes what rounding left in the first, a third finds nothing."""


def largest_eigenvectors(
    gram: Callable[[Tensor], Tensor], start: Tensor, steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Approximate the largest eigenvalue and its vector in a Krylov space.

    Unlike the textbook's process, which orthogonalizes a product against two basis vectors and
    takes its eigenvalues from a tridiagonal matrix, this one orthogonalizes against the whole
    basis and projects the map on it (Rayleigh and Ritz). The basis has a dozen vectors: that costs
    next to nothing, and rounding cannot make copies of an eigenvalue.

    Args:
        gram: the symmetric maps, on vectors ``(L, n)``.
        start: the vectors to start from, shape ``(L, n)``.
        steps: number of products, at most n.

    Returns:
        The vectors, ``(L, n)``; the values, ``(L,)``; and how far the last step raised them,
        ``(L,)``.
    """
    # 1. Grow an orthonormal basis by one product a step, and keep the products.
    basis, images = [unit(start)], list[Tensor]()
    for k in range(1, steps + 1):
        images.append(gram(basis[-1]))
        if k < steps:
            basis.append(_next_basis_vector(torch.stack(basis, dim=1), images[-1]))
    # 2. Project the map on the basis: a small symmetric matrix.
    vectors = torch.stack(basis, dim=1)
    projected = vectors @ torch.stack(images, dim=1).mT
    # 3. Its largest eigenvector combines the basis to the best vector of the space.
    values, combinations = torch.linalg.eigh(projected)
    largest = values[:, -1]
    # 4. Without its last row and column it is the matrix of one step less.
    before = torch.linalg.eigvalsh(projected[:, :-1, :-1])[:, -1] if len(basis) > 1 else largest
    return (combinations[:, None, :, -1] @ vectors).squeeze(1), largest, largest - before


def _next_basis_vector(basis: Tensor, vector: Tensor) -> Tensor:
    """``vector`` made orthogonal to the basis, of unit length; zero if the basis spans it."""
    size = torch.linalg.vector_norm(vector, dim=1, keepdim=True)
    column = vector[..., None]
    for _ in range(SWEEPS):
        column = torch.baddbmm(column, basis.mT, basis @ column, alpha=-1)
    vector = column.squeeze(-1)
    rest = torch.linalg.vector_norm(vector, dim=1, keepdim=True)
    negligible = NEGLIGIBLE * torch.finfo(vector.dtype).eps * size.clamp_min(SMALLEST_LENGTH)
    return torch.where(rest > negligible, vector / rest, 0)
