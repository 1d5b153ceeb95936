"""Norms by iteration from a random start, with a count of the products that they take."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_resflow.nn import OperatorNorm
from pyro_resflow.nn.lipschitz.groups import MatrixGroup, OperatorGroup
from pyro_resflow.nn.lipschitz.operators import LinearOperator, MatrixOperator

CONVERGED = {"tolerance": 1e-15, "max_iterations": 2000}


def measured(norm: OperatorNorm, operator: LinearOperator, codomain: int, domain: int) -> Tensor:
    """The norm by iteration from a random start."""
    u, v = torch.randn(codomain, dtype=torch.float64), torch.randn(domain, dtype=torch.float64)
    return norm.sigma(operator, *norm.iterate(operator, u, v))


class CountingOperator(MatrixOperator):
    """Counts products with the matrix, or with it and its transpose."""

    applications = 0
    original: CountingOperator | None = None
    """The operator that counts the products of this one, whose weight is another."""

    def with_weight(self, weight: Tensor) -> CountingOperator:
        other = CountingOperator(weight)
        other.original = self.original or self
        return other

    def apply(self, v: Tensor) -> Tensor:
        self.applications += 1
        return super().apply(v)

    @classmethod
    def group(cls, operators: Sequence[CountingOperator]) -> OperatorGroup:
        return CountingGroup(operators)


class CountingGroup(MatrixGroup):
    def __init__(self, operators: Sequence[CountingOperator]) -> None:
        super().__init__([each.weight for each in operators])
        self.operator = operators[0].original or operators[0]

    def gram(self, near: Tensor) -> Tensor:
        self.operator.applications += 1
        return super().gram(near)
