from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from pyro_resflow.nn.lipschitz.gram import (
    ConvolutionGram,
    Gram,
    MatrixGram,
    ThinConvolutionGram,
    largest_eigenvectors,
)
from pyro_resflow.nn.lipschitz.operators import ConvolutionOperator, LinearOperator, MatrixOperator

SIZE = (4, 5)


def matrices_of(*shape: int) -> list[LinearOperator]:
    return [MatrixOperator(torch.randn(shape, dtype=torch.float64)) for _ in range(3)]


def convolutions(*shape: int) -> list[LinearOperator]:
    weights = torch.randn(3, *shape, dtype=torch.float64)
    return [ConvolutionOperator(weight, SIZE) for weight in weights]


CASES: dict[str, tuple[type, Callable[[], Sequence[LinearOperator]]]] = {
    "tall matrices": (MatrixGram, lambda: matrices_of(7, 4)),
    "wide matrices": (MatrixGram, lambda: matrices_of(4, 7)),
    "few channels in": (ThinConvolutionGram, lambda: convolutions(40, 2, 3, 3)),
    "few channels out": (ThinConvolutionGram, lambda: convolutions(2, 40, 3, 3)),
    "more channels out": (ConvolutionGram, lambda: convolutions(6, 4, 3, 3)),
    "more channels in": (ConvolutionGram, lambda: convolutions(4, 6, 3, 3)),
    "matrices both ways": (MatrixGram, lambda: matrices_of(7, 4) + matrices_of(4, 7)),
    "few channels on either side": (
        ThinConvolutionGram,
        lambda: convolutions(40, 2, 3, 3) + convolutions(2, 40, 3, 3),
    ),
    "convolutions both ways": (
        ConvolutionGram,
        lambda: convolutions(6, 4, 3, 3) + convolutions(4, 6, 3, 3),
    ),
}


def dense(operator: LinearOperator) -> Tensor:
    """The operator as a matrix, (out, in)."""
    entries = torch.Size(operator.domain).numel()
    units = torch.eye(entries, dtype=torch.float64).unflatten(1, operator.domain)
    return operator.apply(units).flatten(1).t()


@pytest.mark.parametrize("name", CASES)
def test_products_are_those_of_the_gram_matrix_on_the_short_side(name: str) -> None:
    kind, make = CASES[name]
    operators = make()
    gram = operators[0].gram(operators)
    assert isinstance(gram, kind)
    dense_operators = [dense(operator) for operator in operators]
    sides = zip(dense_operators, gram.on_domain, strict=True)
    matrices = torch.stack([m if on_domain else m.mT for m, on_domain in sides])
    assert matrices.shape[2] <= matrices.shape[1]
    vectors = torch.randn(len(matrices), matrices.shape[2], dtype=torch.float64)
    across = (matrices @ vectors[..., None]).squeeze(-1)
    torch.testing.assert_close(gram.across(vectors), across)
    torch.testing.assert_close(gram(vectors), (matrices.mT @ across[..., None]).squeeze(-1))


@pytest.mark.parametrize("name", CASES)
def test_outer_products_together_are_those_of_each_operator(name: str) -> None:
    _, make = CASES[name]
    operators = make()
    gram = operators[0].gram(operators)
    size, other = sorted(
        torch.Size(s).numel() for s in (operators[0].domain, operators[0].codomain)
    )
    near = torch.randn(len(operators), size, dtype=torch.float64)
    far = torch.randn(len(operators), other, dtype=torch.float64)
    found = operators[0].outers(operators, near, far)
    for operator, outer, n, f, on_domain in zip(
        operators, found, near, far, gram.on_domain, strict=True
    ):
        u, v = (f, n) if on_domain else (n, f)
        expected = operator.outer(u.view(1, *operator.codomain), v.view(1, *operator.domain))
        torch.testing.assert_close(outer, expected)


def gram_of(eigenvalues: Sequence[float]) -> tuple[Gram, Tensor]:
    """A Gram map of these eigenvalues, three times in other bases, and its eigenvectors."""
    vectors, _ = torch.linalg.qr(torch.randn(3, *[len(eigenvalues)] * 2, dtype=torch.float64))
    roots = torch.tensor(eigenvalues, dtype=torch.float64).sqrt()
    return MatrixGram([*(roots[:, None] * vectors.mT)]), vectors


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
