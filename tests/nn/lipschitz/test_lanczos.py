from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyro_resflow.nn.lipschitz.groups import MatrixGroup
from pyro_resflow.nn.lipschitz.lanczos import by_eigh, by_squaring, largest_eigenvectors

Gram = Callable[[Tensor], Tensor]


def gram_of(eigenvalues: Sequence[float]) -> tuple[Gram, Tensor]:
    """A Gram map of these eigenvalues, three times in other bases, and its eigenvectors."""
    vectors, _ = torch.linalg.qr(torch.randn(3, *[len(eigenvalues)] * 2, dtype=torch.float64))
    roots = torch.tensor(eigenvalues, dtype=torch.float64).sqrt()
    return MatrixGroup([*(roots[:, None] * vectors.mT)]).gram, vectors


def test_a_whole_krylov_space_gives_the_largest_eigenvector() -> None:
    gram, vectors = gram_of([1.0, 5.0, 3.0, 4.9, 0.0])
    found, values, rise = largest_eigenvectors(gram, torch.randn(3, 5, dtype=torch.float64), 5)
    torch.testing.assert_close(values, torch.full_like(values, 5.0))
    aligned = (found * vectors[..., 1]).sum(1).abs()
    torch.testing.assert_close(aligned, torch.ones_like(aligned))
    assert (rise >= 0).all()


def test_more_products_come_closer_from_below() -> None:
    gram, _ = gram_of(torch.linspace(0, 1, 40).tolist())
    start = torch.randn(3, 40, dtype=torch.float64)
    last = torch.zeros(3, dtype=torch.float64)
    for steps in (1, 2, 4, 8, 16):
        _, values, rise = largest_eigenvectors(gram, start, steps)
        assert (values > last).all()
        assert (values <= 1 + 1e-12).all()
        if steps > 1:
            _, before, _ = largest_eigenvectors(gram, start, steps - 1)
            torch.testing.assert_close(values - rise, before)
        last = values
    assert (last > 0.99).all()


def test_a_space_that_ends_early_does_no_harm() -> None:
    gram, vectors = gram_of([2.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    start = vectors[..., 0] + vectors[..., 1]  # two dimensions hold all its products
    found, values, _ = largest_eigenvectors(gram, start, 6)
    torch.testing.assert_close(values, torch.full_like(values, 2.0))
    assert found.isfinite().all()
    zero, values, _ = largest_eigenvectors(gram, torch.zeros_like(start), 3)
    assert not zero.any()
    assert not values.any()


def test_squaring_finds_the_eigenvector_that_eigh_finds() -> None:
    gram, _ = gram_of([*torch.linspace(0, 1, 30).tolist(), 1.001])
    start = torch.randn(3, 31, dtype=torch.float64)
    expected, largest, _ = largest_eigenvectors(gram, start, 12, by_eigh)
    found, values, rise = largest_eigenvectors(gram, start, 12, by_squaring)
    torch.testing.assert_close((found * expected).sum(1).abs(), torch.ones_like(values))
    torch.testing.assert_close((found * gram(found)).sum(1), largest)
    assert (rise.abs() <= 1e-12 * values).all()
