"""Missing solutions and bad arguments raise errors."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pyro_resflow.solvers import Anderson, ConvergenceError, FixedPoint, NewtonKrylov, Solver
from tests.solvers.cases import LIPSCHITZ, SOLVERS, network


class NoSolution(nn.Module):
    """x + g(x) = tanh(x): nothing maps to what is beyond 1."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x) - x


class Stretch(nn.Module):
    """g(x) = 3x."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * x


@pytest.mark.parametrize("y", [1.5, -3.0])
@pytest.mark.parametrize("solver", SOLVERS)
def test_error_where_there_is_no_solution_has_its_figures(solver: type[Solver], y: float) -> None:
    batch = torch.tensor([[0.1, 0.2], [0.1, y]], dtype=torch.float64)
    with pytest.raises(ConvergenceError) as caught:
        solver(max_iterations=100)(NoSolution(), batch)
    error = caught.value
    assert isinstance(error, ValueError)
    assert 100 <= error.iterations <= 103
    # tanh reaches 1 at best; what remains is relative to y
    assert error.residual == pytest.approx((abs(y) - 1) / abs(y), abs=0.05)
    assert error.contraction >= 1
    figures = re.findall(r"after (\d+) .* is (\S+) and .* is (\S+?)\. A", str(error))
    assert figures == [
        (str(error.iterations), f"{error.residual:.2e}", f"{error.contraction:.3f}")
    ]


@pytest.mark.parametrize("solver", SOLVERS)
def test_samples_without_a_solution_are_named_and_can_be_left_out(solver: type[Solver]) -> None:
    y = torch.tensor([[0.1], [1.5], [torch.nan], [-0.4]], dtype=torch.float64, requires_grad=True)
    with pytest.raises(ConvergenceError, match=r"1 of 2 samples \(1\)") as caught:
        solver(max_iterations=100)(NoSolution(), y[:2])
    assert caught.value.failed.tolist() == [False, True]
    x = solver(max_iterations=100, unsolved="nan")(NoSolution(), y)
    expected = torch.tensor([[0.1], [torch.nan], [torch.nan], [-0.4]], dtype=torch.float64).atanh()
    torch.testing.assert_close(x, expected, equal_nan=True)
    x[[0, 3]].sum().backward()
    slopes = torch.tensor([[1 / 0.99], [0], [0], [1 / 0.84]], dtype=torch.float64)
    torch.testing.assert_close(y.grad, slopes)


@pytest.mark.parametrize("solver", SOLVERS)
def test_leaving_out_changes_nothing_where_all_is_solved(solver: type[Solver]) -> None:
    net, _ = network("mlp")
    y = torch.randn(8, 4, dtype=torch.float64)
    assert torch.equal(solver(unsolved="nan")(net, y), solver()(net, y))


@pytest.mark.parametrize("max_iterations", [20, 1000])
def test_error_where_the_iteration_diverges_measures_the_expansion(max_iterations: int) -> None:
    with pytest.raises(ConvergenceError) as caught:
        FixedPoint(max_iterations=max_iterations)(Stretch(), torch.randn(5, 2))
    assert caught.value.contraction == pytest.approx(3, rel=1e-5)
    assert caught.value.iterations == max_iterations


def test_error_where_a_contraction_was_given_too_few_iterations() -> None:
    net, _ = network("mlp")
    with pytest.raises(ConvergenceError) as caught:
        FixedPoint(max_iterations=5)(net, torch.randn(8, 4, dtype=torch.float64))
    assert caught.value.iterations == 5
    assert 0.3 < caught.value.contraction < LIPSCHITZ


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_y_that_is_not_finite_is_refused(value: float) -> None:
    net, _ = network("mlp")
    y = torch.randn(3, 4, dtype=torch.float64)
    y[1, 2] = value
    with pytest.raises(ValueError, match=r"^y"):
        Anderson()(net, y)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    ("match", "arguments"),
    [
        ("tolerance", {"tolerance": 0.0}),
        ("tolerance", {"tolerance": -1e-3}),
        ("tolerance", {"tolerance": torch.nan}),
        ("max_iterations", {"max_iterations": 0}),
        ("unsolved", {"unsolved": "skip"}),
    ],
)
def test_bad_argument_is_named(solver: type[Solver], match: str, arguments) -> None:
    with pytest.raises(ValueError, match=match):
        solver(**arguments)


@pytest.mark.parametrize(
    ("match", "make"),
    [
        ("depth", lambda: Anderson(0)),
        ("patience", lambda: Anderson(patience=0)),
        ("krylov_steps", lambda: NewtonKrylov(0)),
    ],
)
def test_bad_argument_of_one_solver_is_named(match: str, make: Callable[[], Solver]) -> None:
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize("solver", SOLVERS)
def test_bad_event_dim_is_named(solver: type[Solver]) -> None:
    net, _ = network("mlp")
    with pytest.raises(ValueError, match="event_dim"):
        solver()(net, torch.randn(4), 2)
    with pytest.raises(ValueError, match="event_dim"):
        solver()(net, torch.randn(4), 0)
