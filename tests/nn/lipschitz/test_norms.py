from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_resflow.nn import InducedNorm, OperatorNorm, SpectralNorm
from pyro_resflow.nn.lipschitz.groups import MatrixGroup, OperatorGroup
from pyro_resflow.nn.lipschitz.operators import ConvolutionOperator, LinearOperator, MatrixOperator
from tests.derivatives import central_differences

ORDERS = [(2.0, 2.0), (3.0, 1.5), (1.5, 3.0), (4.0, 4.0), (1.2, 1.2), (1.5, 1.1)]
CONVERGED = {"tolerance": 1e-15, "max_iterations": 2000}


def induced(p: float, q: float) -> InducedNorm:
    return InducedNorm(p, q, **CONVERGED).double()


def brute_force(matrix: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """The norm p -> q of a matrix with two columns, over a fine grid of directions."""
    angles = torch.linspace(0, math.pi, 40_001, dtype=matrix.dtype)
    directions = torch.stack([angles.cos(), angles.sin()])
    images = torch.linalg.vector_norm(matrix @ directions, q.item(), dim=0)
    return (images / torch.linalg.vector_norm(directions, p.item(), dim=0)).max()


def measured(norm: OperatorNorm, operator: LinearOperator, codomain: int, domain: int) -> Tensor:
    """The norm by iteration from a random start."""
    u, v = torch.randn(codomain, dtype=torch.float64), torch.randn(domain, dtype=torch.float64)
    return norm.sigma(operator, *norm.iterate(operator, u, v))


class CountingOperator(MatrixOperator):
    """Counts products with the matrix, or with it and its transpose."""

    applications = 0

    def apply(self, v: Tensor) -> Tensor:
        self.applications += 1
        return super().apply(v)

    @classmethod
    def group(cls, operators: Sequence[CountingOperator]) -> OperatorGroup:
        return CountingGroup(operators)


class CountingGroup(MatrixGroup):
    def __init__(self, operators: Sequence[CountingOperator]) -> None:
        super().__init__([each.weight for each in operators])
        self.operator = operators[0]

    def gram(self, near: Tensor) -> Tensor:
        self.operator.applications += 1
        return super().gram(near)


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


@pytest.mark.parametrize("norm", [SpectralNorm, InducedNorm])
def test_without_tolerance_all_iterations_are_taken(norm: type[OperatorNorm]) -> None:
    operator = CountingOperator(torch.diag(torch.tensor([1.0, 0.1])))
    norm(tolerance=None, max_iterations=17).iterate(operator, torch.ones(2), torch.ones(2))
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


def test_update_that_starts_at_its_goal_is_short() -> None:
    operator = CountingOperator(torch.randn(30, 30, dtype=torch.float64))
    norm = SpectralNorm()
    u, v = norm.iterate(operator, *torch.randn(2, 30, dtype=torch.float64))
    operator.applications = 0
    norm.iterate(operator, u, v)
    assert operator.applications <= norm.cycle


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


def test_number_of_iterations_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="max_iterations"):
        SpectralNorm(max_iterations=0)


@pytest.mark.parametrize("coefficient", [-0.5, 0.0, 1.0, 1.5, math.nan])
@pytest.mark.parametrize("make", [SpectralNorm, lambda c: InducedNorm(2.0, 2.0, c)])
def test_coefficient_outside_the_unit_interval_is_refused(make, coefficient: float) -> None:
    with pytest.raises(ValueError, match="coefficient"):
        make(coefficient)


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
