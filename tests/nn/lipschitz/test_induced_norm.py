from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pyro_resflow.nn import InducedNorm
from pyro_resflow.nn.lipschitz.operators import ConvolutionOperator, MatrixOperator
from tests.derivatives import central_differences
from tests.nn.lipschitz.norms import CONVERGED, measured

ORDERS = [(2.0, 2.0), (3.0, 1.5), (1.5, 3.0), (4.0, 4.0), (1.2, 1.2), (1.5, 1.1)]


def induced(p: float, q: float) -> InducedNorm:
    return InducedNorm(p, q, **CONVERGED).double()


def brute_force(matrix: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """The norm p -> q of a matrix with two columns, over a fine grid of directions."""
    angles = torch.linspace(0, math.pi, 40_001, dtype=matrix.dtype)
    directions = torch.stack([angles.cos(), angles.sin()])
    images = torch.linalg.vector_norm(matrix @ directions, q.item(), dim=0)
    return (images / torch.linalg.vector_norm(directions, p.item(), dim=0)).max()


@pytest.mark.parametrize("order", [0.5, 1.0, math.inf, math.nan])
@pytest.mark.parametrize("name", ["domain", "codomain"])
def test_order_that_is_none_is_refused(name: str, order: float) -> None:
    with pytest.raises(ValueError, match=f"^{name}"):
        InducedNorm(**{name: order})


@pytest.mark.parametrize(("p", "q"), ORDERS)
def test_induced_norm_is_that_of_brute_force(p: float, q: float) -> None:
    norm = induced(p, q)
    for _ in range(3):
        matrix = torch.randn(3, 2, dtype=torch.float64)
        truth = brute_force(matrix, norm.domain, norm.codomain)
        starts = [measured(norm, MatrixOperator(matrix), 3, 2) for _ in range(8)]
        # a flat maximum is missed by the square of the grid's width of 8e-5, one at a kink
        # (orders near 1) by a tenth of the width
        assert max(starts).item() == pytest.approx(truth.item(), rel=1e-5)


def test_orders_of_two_are_the_spectral_norm() -> None:
    matrix = torch.randn(6, 5, dtype=torch.float64)
    sigma = measured(induced(2.0, 2.0), MatrixOperator(matrix), 6, 5)
    torch.testing.assert_close(sigma, torch.linalg.matrix_norm(matrix, 2))


def test_domain_order_near_one_gives_the_largest_column() -> None:
    matrix = torch.randn(6, 5, dtype=torch.float64)
    norm = induced(1.0001, 3.0)
    largest = torch.linalg.vector_norm(matrix, 3.0, dim=0).max()
    bound = norm.upper_bound(MatrixOperator(matrix))
    starts = [measured(norm, MatrixOperator(matrix), 6, 5) for _ in range(8)]
    # the unit balls of order 1 and 1.0001 are within 5^(1e-4) = 1.0002 of each other
    assert bound.item() == pytest.approx(largest.item(), rel=2e-4)
    assert max(starts).item() == pytest.approx(largest.item(), rel=2e-4)


@pytest.mark.parametrize(("p", "q"), ORDERS)
def test_dual_vectors_attain_the_norms(p: float, q: float) -> None:
    norm = induced(p, q)
    p, q = norm.domain.item(), norm.codomain.item()
    y, z = torch.randn(2, 7, dtype=torch.float64)
    u, v = norm.dual_output(y), norm.dual_input(z)
    unit = torch.tensor(1.0, dtype=torch.float64)
    torch.testing.assert_close(u @ y, torch.linalg.vector_norm(y, q))
    torch.testing.assert_close(torch.linalg.vector_norm(u, q / (q - 1)), unit)
    torch.testing.assert_close(v @ z, torch.linalg.vector_norm(z, p / (p - 1)))
    torch.testing.assert_close(torch.linalg.vector_norm(v, p), unit)


@pytest.mark.parametrize(("p", "q"), ORDERS)
def test_upper_bound_of_induced_norms_holds_within_a_quarter(p: float, q: float) -> None:
    norm = induced(p, q)
    for _ in range(5):
        matrix = torch.randn(3, 2, dtype=torch.float64)
        truth = brute_force(matrix, norm.domain, norm.codomain)
        bound = norm.upper_bound(MatrixOperator(matrix))
        # at most, Hoelder loses 2^|1/2 - 1/p| * 3^|1/q - 1/2|; the best of three loses less
        assert truth <= bound < 1.25 * truth


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_upper_bound_holds_at_orders_whose_powers_over_or_underflow(scale: float) -> None:
    norm = InducedNorm(1.01, 50.0, **CONVERGED)
    matrix = scale * torch.randn(6, 5)
    u, v = norm.iterate(MatrixOperator(matrix), torch.randn(6), torch.randn(5))
    sigma = norm.sigma(MatrixOperator(matrix), u, v)
    assert sigma <= norm.upper_bound(MatrixOperator(matrix)) * (1 + 1e-6) < 1.25 * sigma


@pytest.mark.parametrize(("p", "q"), ORDERS)
def test_upper_bound_of_induced_norms_of_convolutions_holds(p: float, q: float) -> None:
    norm = induced(p, q)
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    operator = ConvolutionOperator(weight, (3, 4))
    bound = norm.upper_bound(operator)
    starts = [measured(norm, operator, 36, 24) for _ in range(8)]
    assert max(starts) <= bound < 3 * max(starts)


@pytest.mark.parametrize("of", ["domain_logit", "codomain_logit", "weight"])
def test_gradients_of_induced_norms_are_those_of_finite_differences(of: str) -> None:
    norm = induced(3.0, 1.5)  # where p > q the maximum found is the only one
    weight = nn.Parameter(torch.randn(5, 4, dtype=torch.float64))
    parameter = weight if of == "weight" else getattr(norm, of)
    vectors = [torch.randn(5, dtype=torch.float64), torch.randn(4, dtype=torch.float64)]

    def sigma() -> Tensor:
        operator = MatrixOperator(weight)
        return norm.sigma(operator, *norm.iterate(operator, *vectors))

    (gradient,) = torch.autograd.grad(sigma(), parameter)
    indices, differences = central_differences(sigma, parameter)
    # differences are good to step^2 and to rounding / step, 1e-10 both
    torch.testing.assert_close(gradient.view(-1)[indices], differences, rtol=1e-7, atol=1e-8)


def test_chain_closes() -> None:
    norms = InducedNorm.chain(3, order=1.7, coefficient=0.9)
    assert [norm.coefficient for norm in norms] == [0.9] * 3
    for norm, following in zip(norms, [*norms[1:], norms[0]], strict=True):
        assert norm.codomain_logit is following.domain_logit
        assert norm.domain_logit is not norm.codomain_logit
        assert norm.domain.item() == pytest.approx(1.7)
    assert len(set(nn.ModuleList(norms).parameters())) == 3


def test_chain_of_one_layer_maps_a_norm_to_itself() -> None:
    (norm,) = InducedNorm.chain(1)
    assert norm.domain_logit is norm.codomain_logit


@pytest.mark.parametrize("logit", [-30.0, -12.0, 12.0, 30.0])
def test_extreme_orders_stay_finite_in_single_precision(logit: float) -> None:
    norm = InducedNorm(nn.Parameter(torch.tensor(logit)), nn.Parameter(torch.tensor(-logit)))
    operator = MatrixOperator(torch.randn(4, 3))
    u, v = norm.iterate(operator, torch.randn(4), torch.randn(3))
    sigma = norm.sigma(operator, u, v)
    gradients = torch.autograd.grad(sigma, list(norm.parameters()))
    assert 0 < sigma <= norm.upper_bound(operator) * (1 + 1e-5)
    assert all(gradient.isfinite() for gradient in gradients)
