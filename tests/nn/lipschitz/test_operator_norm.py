from __future__ import annotations

import math

import pytest
import torch

from pyro_resflow.nn import InducedNorm, OperatorNorm, SpectralNorm
from pyro_resflow.nn.lipschitz.operators import MatrixOperator
from pyro_resflow.nn.lipschitz.squaring import SQUARED_SIDE
from tests.nn.lipschitz.norms import CountingOperator, measured


@pytest.mark.parametrize("norm", [SpectralNorm, InducedNorm])
def test_without_tolerance_all_iterations_are_taken(norm: type[OperatorNorm]) -> None:
    size = SQUARED_SIDE + 1  # smaller Gram matrices are squared
    operator = CountingOperator(torch.linspace(0.1, 1, size).diag())
    norm(tolerance=None, max_iterations=17).iterate(operator, *torch.ones(2, size))
    assert operator.applications == 17


@pytest.mark.parametrize("norm", [SpectralNorm, InducedNorm])
def test_iteration_stops_at_the_tolerance(norm: type[OperatorNorm]) -> None:
    matrix = torch.randn(300, 300, dtype=torch.float64)
    truth = torch.linalg.matrix_norm(matrix, 2)
    applications, errors = [], []
    for tolerance in (1e-2, 1e-6, 1e-12):
        operator = CountingOperator(matrix)
        measure = norm(tolerance=tolerance, max_iterations=2000).double()
        sigma = measured(measure, operator, 300, 300)
        applications.append(operator.applications)
        errors.append((1 - sigma / truth).item())
    assert 2 < applications[0] < applications[1] < applications[2] < 2000
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-9


@pytest.mark.parametrize("norm", [SpectralNorm, InducedNorm])
def test_zero_is_measured_and_left_again(norm: type[OperatorNorm]) -> None:
    zero = MatrixOperator(torch.zeros(6, 5))
    u, v = norm().iterate(zero, torch.randn(6), torch.randn(5))
    assert norm().sigma(zero, u, v) < 1e-30
    matrix = torch.randn(6, 5)
    u, v = norm().iterate(MatrixOperator(matrix), u, v)
    sigma = norm().sigma(MatrixOperator(matrix), u, v)
    assert sigma.item() == pytest.approx(torch.linalg.matrix_norm(matrix, 2).item(), rel=1e-3)


@pytest.mark.parametrize("value", [3.5, 5.0, 9.0, 30.0])
@pytest.mark.parametrize(("norm", "updates"), [(SpectralNorm(), 1), (InducedNorm(), 10)])
def test_direction_orthogonal_to_the_last_one_is_found(
    norm: OperatorNorm, updates: int, value: float
) -> None:
    diagonal = torch.tensor([3.0, 1.0, 1.0, 1.0, 0.5, 0.2, 0.1])
    u, v = norm.iterate(MatrixOperator(diagonal.diag()), *torch.eye(7)[[0, 0]])
    diagonal[4] = value
    operator = MatrixOperator(diagonal.diag())
    for _ in range(updates):
        u, v = norm.iterate(operator, u, v)
    assert norm.sigma(operator, u, v).item() == pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize("coefficient", [-0.5, 0.0, 1.0, 1.5, math.nan])
@pytest.mark.parametrize("make", [SpectralNorm, lambda c: InducedNorm(2.0, 2.0, c)])
def test_coefficient_outside_the_unit_interval_is_refused(make, coefficient: float) -> None:
    with pytest.raises(ValueError, match="coefficient"):
        make(coefficient)
