"""The leading eigenvectors of several symmetric maps at once, by the Lanczos process."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .directions import generic_direction, unit
from .squaring import GramPower

NEGLIGIBLE = 10
"""Times eps and the length of a vector in the span of a basis: the longest remainder that rounding
leaves after orthogonalization. A longer remainder is a new direction."""

SMALLEST_LENGTH = 1e-30
"""Shorter vectors count as this long, so that NEGLIGIBLE eps times it does not underflow."""

SCALINGS_OF_RITZ = 4
"""Scalings in :func:`by_squaring`: with the 65,536th power, the eigenvalue of a matrix of a dozen
rows is at most 2e-5 of its value too low, however small the gap below it."""

SWEEPS = 2
"""Sweeps of Gram-Schmidt. The second removes the overlap that rounding leaves after the first; a
third would change nothing."""


Ritz = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""Maps symmetric matrices, ``(L, k, k)``, to their leading eigenvectors, ``(L, k)``, the
eigenvalues, ``(L,)``, and their increase from the matrices without the last row and column."""


def by_eigh(projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The :data:`Ritz` of all eigenvalues. On an accelerator it synchronises with the host."""
    values, vectors = torch.linalg.eigh(projected)
    largest = values[:, -1]
    # without the last row and column, it is the matrix of the step before
    size = projected.shape[-1] - 1
    before = torch.linalg.eigvalsh(projected[:, :size, :size])[:, -1] if size else largest
    return vectors[..., -1], largest, largest - before


def by_squaring(projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The :data:`Ritz` by repeated squaring, for a fixed number of steps: no synchronisation.

    The eigenvalues, and their increase in the last step of the power method, are in units of the
    matrices' largest entries.
    """
    power = GramPower(projected, SCALINGS_OF_RITZ)
    return power.cycle(generic_direction(projected[0, 0]).expand(projected.shape[:2]))


def largest_eigenvectors(
    gram: Callable[[Tensor], Tensor], start: Tensor, steps: int, ritz: Ritz = by_eigh
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
        ritz: :func:`by_eigh` or :func:`by_squaring`.

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
    projected = torch.bmm(vectors, torch.stack(images, dim=2))
    # 3. The eigenvector of its largest eigenvalue gives the best vector of the space.
    combinations, values, rise = ritz(projected)
    return torch.bmm(combinations[:, None], vectors).squeeze(1), values, rise


def _next_basis_vector(basis: Tensor, vector: Tensor) -> Tensor:
    """``vector`` made orthogonal to the basis, of unit length; zero if the basis spans it."""
    size = torch.linalg.vector_norm(vector, dim=1, keepdim=True)
    row = vector[:, None]  # torch takes several times as long for the same product with a column
    for _ in range(SWEEPS):
        row = torch.baddbmm(row, torch.bmm(row, basis.mT), basis, alpha=-1)
    vector = row.squeeze(1)
    rest = torch.linalg.vector_norm(vector, dim=1, keepdim=True)
    negligible = NEGLIGIBLE * torch.finfo(vector.dtype).eps * size.clamp_min(SMALLEST_LENGTH)
    return torch.where(rest > negligible, vector / rest, 0)
