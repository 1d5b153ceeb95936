from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from pyro_resflow.nn.lipschitz.groups import (
    ConvolutionGroup,
    MatrixGroup,
    ThinConvolutionGroup,
)
from pyro_resflow.nn.lipschitz.operators import (
    ConvolutionOperator,
    LinearOperator,
    MatrixOperator,
    grouped,
)

SIZE = (4, 5)


def matrices_of(*shape: int) -> list[LinearOperator]:
    return [MatrixOperator(torch.randn(shape, dtype=torch.float64)) for _ in range(3)]


def convolutions(*shape: int) -> list[LinearOperator]:
    weights = torch.randn(3, *shape, dtype=torch.float64)
    return [ConvolutionOperator(weight, SIZE) for weight in weights]


CASES: dict[str, tuple[type, Callable[[], Sequence[LinearOperator]]]] = {
    "tall matrices": (MatrixGroup, lambda: matrices_of(7, 4)),
    "wide matrices": (MatrixGroup, lambda: matrices_of(4, 7)),
    "few channels in": (ThinConvolutionGroup, lambda: convolutions(40, 2, 3, 3)),
    "few channels out": (ThinConvolutionGroup, lambda: convolutions(2, 40, 3, 3)),
    "more channels out": (ConvolutionGroup, lambda: convolutions(6, 4, 3, 3)),
    "more channels in": (ConvolutionGroup, lambda: convolutions(4, 6, 3, 3)),
    "matrices both ways": (MatrixGroup, lambda: matrices_of(7, 4) + matrices_of(4, 7)),
    "few channels on either side": (
        ThinConvolutionGroup,
        lambda: convolutions(40, 2, 3, 3) + convolutions(2, 40, 3, 3),
    ),
    "convolutions both ways": (
        ConvolutionGroup,
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
    group = grouped(operators)
    assert isinstance(group, kind)
    dense_operators = [dense(operator) for operator in operators]
    sides = zip(dense_operators, group.on_domain, strict=True)
    matrices = torch.stack([m if on_domain else m.mT for m, on_domain in sides])
    assert matrices.shape[2] <= matrices.shape[1]
    vectors = torch.randn(len(matrices), matrices.shape[2], dtype=torch.float64)
    across = (matrices @ vectors[..., None]).squeeze(-1)
    torch.testing.assert_close(group.across(vectors), across)
    torch.testing.assert_close(group.gram(vectors), (matrices.mT @ across[..., None]).squeeze(-1))


@pytest.mark.parametrize("name", CASES)
def test_outer_products_together_are_those_of_each_operator(name: str) -> None:
    _, make = CASES[name]
    operators = make()
    group = grouped(operators)
    size, other = sorted(
        torch.Size(s).numel() for s in (operators[0].domain, operators[0].codomain)
    )
    near = torch.randn(len(operators), size, dtype=torch.float64)
    far = torch.randn(len(operators), other, dtype=torch.float64)
    found = group.outers(near, far)
    for operator, outer, n, f, on_domain in zip(
        operators, found, near, far, group.on_domain, strict=True
    ):
        u, v = (f, n) if on_domain else (n, f)
        expected = operator.outer((u.view(1, *operator.codomain), v.view(1, *operator.domain)))
        torch.testing.assert_close(outer, expected)
