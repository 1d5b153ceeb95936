"""The leading eigenvectors of several symmetric maps at once, by the Lanczos process."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .directions import unit

NEGLIGIBLE = 10
"""Times eps and the length of a vector in the span of a basis: the longest remainder that rounding
leaves after orthogonalization. A longer remainder is a new direction."""

SMALLEST_LENGTH = 1e-30
"""Shorter vectors count as this long, so that NEGLIGIBLE eps times it does not underflow."""

SWEEPS = 2
"""Sweeps of Gram-Schmidt. The second removes the overlap that rounding leaves after the first; a
third would change nothing."""


def largest_eigenvectors(
    gram: Callable[[Tensor], Tensor], start: Tensor, steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Approximate the largest eigenvalue and its eigenvector in a Krylov space.

    The textbook process orthogonalizes a product against two basis vectors and takes eigenvalues
    from a tridiagonal matrix. This one orthogonalizes against the whole basis and projects the map
    onto it (Rayleigh-Ritz). With a dozen basis vectors this costs next to nothing, and rounding
    cannot create copies of an eigenvalue.

    Args:
        gram: the symmetric maps, on vectors ``(L, n)``.
        start: the start vectors, shape ``(L, n)``.
        steps: number of products, at most n.

    Returns:
        The eigenvectors, ``(L, n)``; the eigenvalues, ``(L,)``; and the increase of these in the
        last step, ``(L,)``.
    """
    # 1. Grow an orthonormal basis by one product per step, and keep the products.
    basis, images = [unit(start)], list[Tensor]()
    for k in range(1, steps + 1):
        images.append(gram(basis[-1]))
        if k < steps:
            basis.append(_next_basis_vector(torch.stack(basis, dim=1), images[-1]))
    # 2. Project the map onto the basis: a small symmetric matrix.
    vectors = torch.stack(basis, dim=1)
    projected = vectors @ torch.stack(images, dim=1).mT
    # 3. The eigenvector of its largest eigenvalue gives the best vector of the space.
    values, combinations = torch.linalg.eigh(projected)
    largest = values[:, -1]
    # 4. Without the last row and column, it is the matrix of the step before.
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
