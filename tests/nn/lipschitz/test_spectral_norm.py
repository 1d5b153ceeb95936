from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from pyro_resflow.nn import SpectralNorm
from pyro_resflow.nn.lipschitz.operators import ConvolutionOperator, MatrixOperator
from pyro_resflow.nn.lipschitz.squaring import SQUARED_SIDE
from tests.nn.lipschitz.norms import CONVERGED, CountingOperator, measured


@pytest.mark.parametrize("shape", [(1, 4), (5, 3), (8, 8), (60, 60)])
def test_spectral_norm_converges_to_the_largest_singular_value(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, dtype=torch.float64)
    sigma = measured(SpectralNorm(**CONVERGED), MatrixOperator(matrix), *shape)
    truth = torch.linalg.matrix_norm(matrix, 2)
    torch.testing.assert_close(sigma, truth, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("size", [(2, 2), (1, 5), (6, 4)])
def test_spectral_norm_converges_to_the_norm_of_the_convolution(
    kernel: int, size: tuple[int, int]
) -> None:
    weight = torch.randn(3, 2, kernel, kernel, dtype=torch.float64)
    pixels = size[0] * size[1]
    units = torch.eye(2 * pixels, dtype=torch.float64).view(-1, 2, *size)
    matrix = F.conv2d(units, weight, padding=kernel // 2).flatten(1)
    sigma = measured(
        SpectralNorm(**CONVERGED), ConvolutionOperator(weight, size), 3 * pixels, 2 * pixels
    )
    torch.testing.assert_close(sigma, torch.linalg.matrix_norm(matrix, 2))


def test_measured_norm_is_a_lower_bound_and_grows_from_update_to_update() -> None:
    matrix = torch.randn(60, 60, dtype=torch.float64)
    truth = torch.linalg.matrix_norm(matrix, 2)
    norm = SpectralNorm(tolerance=None, max_iterations=12)
    u, v = torch.randn(2, 60, dtype=torch.float64)
    last = torch.tensor(0.0, dtype=torch.float64)
    for _ in range(30):
        u, v = norm.iterate(MatrixOperator(matrix), u, v)
        sigma = norm.sigma(MatrixOperator(matrix), u, v)
        # of the generic share of the start twelve products leave this much
        assert last * (1 - 1e-5) <= sigma <= truth * (1 + 1e-14)
        last = sigma
    assert last > 0.999 * truth


def test_update_that_starts_at_its_goal_is_short() -> None:
    size = SQUARED_SIDE + 1  # smaller Gram matrices are squared
    operator = CountingOperator(torch.randn(size, size, dtype=torch.float64))
    norm = SpectralNorm()
    u, v = norm.iterate(operator, *torch.randn(2, size, dtype=torch.float64))
    operator.applications = 0
    norm.iterate(operator, u, v)
    assert 0 < operator.applications <= norm.cycle


@pytest.mark.parametrize("side", [SQUARED_SIDE, SQUARED_SIDE + 1])
@pytest.mark.parametrize("gap", [1e-4, 1e-3, 1e-2])
def test_close_singular_values_are_told_apart_in_single_precision(side: int, gap: float) -> None:
    left, right = torch.linalg.qr(torch.randn(2, side, side))[0]
    values = torch.linspace(1 - gap, 0.1, side)
    values[0] = 1.0
    operator = MatrixOperator(left * values @ right.mT)
    norm = SpectralNorm()
    u, v = norm.iterate(operator, *torch.randn(2, side))
    sigma = norm.sigma(operator, u, v).item()
    # from a random start the value is low by at most the gap, and by little of a large one
    assert 1 - min(gap, 2e-4) <= sigma <= 1 + 1e-5


@pytest.mark.parametrize(("scale", "side"), [(1e-12, 8), (1e17, 8), (1e17, SQUARED_SIDE)])
def test_small_matrices_of_any_size_are_measured_together(scale: float, side: int) -> None:
    matrices = [scale * torch.randn(side, side + 3), torch.zeros(side + 3, side)]
    operators = [MatrixOperator(each) for each in matrices]
    us, vs = [torch.randn(side), torch.randn(side + 3)], [torch.randn(side + 3), torch.randn(side)]
    for _ in range(2):
        us, vs = zip(*SpectralNorm().iterate_together(operators, us, vs), strict=True)
    found = [SpectralNorm().value(u, v) for u, v in zip(us, vs, strict=True)]
    expected = torch.linalg.matrix_norm(matrices[0].double(), 2).float()
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=0)
    assert found[1] == 0


def test_number_of_iterations_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="max_iterations"):
        SpectralNorm(max_iterations=0)
