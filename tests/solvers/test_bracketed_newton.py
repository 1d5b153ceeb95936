"""Roots of increasing functions: hard shapes, rounding, gradients, and errors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyro_resflow.solvers import BracketedNewton, ConvergenceError

Increasing = Callable[..., tuple[Tensor, Tensor]]


def staircase(x: Tensor) -> tuple[Tensor, Tensor]:
    """Steps between plateaus, flat in the middle."""
    return x - torch.sin(x), 1 - torch.cos(x)


def misleading(x: Tensor) -> tuple[Tensor, Tensor]:
    """Newton's method alone runs away from the root at 0."""
    return x.atan(), 1 / (1 + x.square())


def kinked(x: Tensor) -> tuple[Tensor, Tensor]:
    """A slope that jumps a thousandfold at the root."""
    slope = torch.where(x < 0, 1e-3, 1.0).to(x.dtype)
    return slope * x, slope


FUNCTIONS: dict[str, tuple[Increasing, float]] = {
    "cube": (lambda x: (x**3, 3 * x**2), 0.0),
    "cube_off_its_flat_point": (lambda x: (x**3, 3 * x**2), 5.0),
    "sinh": (lambda x: (x.sinh(), x.cosh()), 1e3),
    "staircase": (staircase, 2 * torch.pi),
    "misleading": (misleading, 0.0),
    "kinked": (kinked, 0.0),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_root_is_bracketed_to_the_tolerance(name: str, dtype: torch.dtype) -> None:
    function, target = FUNCTIONS[name]
    solver = BracketedNewton()
    y = torch.full((), target, dtype=dtype)
    x = solver(function, y, torch.full_like(y, -30), torch.full_like(y, 20))
    margin = 4 * solver.tolerance_for(dtype) * x.abs().clamp_min(1)
    assert function(x - margin)[0] <= y
    assert function(x + margin)[0] >= y


def test_roots_of_many_entries_are_found_at_once() -> None:
    y = torch.randn(5, 4, 3, dtype=torch.float64).mul(3).exp()
    x = BracketedNewton()(lambda x: (x.exp(), x.exp()), y, torch.full_like(y, -9), y)
    torch.testing.assert_close(x, y.log(), atol=1e-12, rtol=1e-12)


def test_bracket_is_widened_until_it_is_one() -> None:
    y = torch.tensor([-1e4, 0.0, 1e4], dtype=torch.float64)
    zero = torch.zeros_like(y)
    x = BracketedNewton()(lambda x: (2 * x, torch.full_like(x, 2)), y, zero, zero)
    torch.testing.assert_close(x, y / 2)


def evaluations(function: Increasing, y: Tensor, lower: Tensor, upper: Tensor) -> int:
    calls = []

    def counting(x: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(x)
        return function(x)

    BracketedNewton()(counting, y, lower, upper)
    return len(calls)


def test_smooth_functions_take_a_handful_of_evaluations() -> None:
    y = torch.linspace(-10, 10, 50, dtype=torch.float64)
    count = evaluations(lambda x: (x + x.tanh(), 2 - x.tanh().square()), y, y - 2, y + 2)
    assert count < 12  # bisection alone takes 37


def test_rounding_does_not_keep_it_from_closing_the_bracket() -> None:
    # a slope so small that f is known, in float32, to no better than 1e-3 of x
    y = torch.full((100,), 100.0)
    count = evaluations(lambda x: (100 + 1e-2 * x, torch.full_like(x, 1e-2)), y, y - 103, y - 97)
    assert count < 40


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("root", [0.5, -3e20, 0.0])
def test_a_bracket_of_all_numbers_is_closed_in_a_few_dozen_evaluations(
    root: float, dtype: torch.dtype
) -> None:
    y = torch.full((3,), root, dtype=dtype)
    end = torch.full_like(y, torch.inf)
    function = lambda x: (x, torch.zeros_like(x))  # noqa: E731  no slope: bisection alone
    assert evaluations(function, y, -end, end) < 60
    torch.testing.assert_close(BracketedNewton()(function, y, -end, end), y)


def test_entries_without_a_root_are_named_and_can_be_left_out() -> None:
    y = torch.tensor([[0.5, 2.0], [torch.nan, -0.5]], dtype=torch.float64)
    lower, upper = torch.full_like(y, -4), torch.full_like(y, 4)

    def function(x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        return scale * x.tanh(), scale * (1 - x.tanh() ** 2)

    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    with pytest.raises(
        ConvergenceError, match=r"1 of 2 entries \(1\); the largest resid"
    ) as caught:
        BracketedNewton()(function, y[0], lower[0], upper[0], [scale])
    assert caught.value.failed.tolist() == [False, True]
    x = BracketedNewton(unsolved="nan")(function, y, lower, upper, [scale])
    expected = torch.tensor([[0.5, torch.nan], [torch.nan, -0.5]], dtype=torch.float64).atanh()
    torch.testing.assert_close(x, expected, equal_nan=True)
    x[0, 0].backward()
    # x = atanh(y / scale): the derivative is -y / (1 - y^2)
    torch.testing.assert_close(scale.grad, torch.tensor(-0.5 / 0.75, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3)])
def test_scalars_and_empty_tensors(shape: tuple[int, ...]) -> None:
    y = torch.ones(shape)
    x = BracketedNewton()(lambda x: (x**3, 3 * x**2), y, y - 1, y + 1)
    torch.testing.assert_close(x, y)


def test_gradients_reach_y_and_the_coefficients() -> None:
    y = torch.rand(6, dtype=torch.float64, requires_grad=True)
    scale = torch.rand(6, dtype=torch.float64).add(0.5).requires_grad_()

    def function(x: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        return a * x + x**3, a + 3 * x.square()

    def root(y: Tensor, scale: Tensor) -> Tensor:
        return BracketedNewton()(function, y, torch.zeros_like(y), y.detach() / 0.1, [scale])

    assert torch.autograd.gradcheck(root, (y, scale))
    assert torch.autograd.gradgradcheck(root, (y, scale))


def test_function_without_a_root_raises() -> None:
    y = torch.full((3,), 2.0)
    with pytest.raises(ConvergenceError, match="does not increase") as caught:
        BracketedNewton()(lambda x: (x.tanh(), 1 - x.tanh() ** 2), y, y - 4, y)
    assert caught.value.iterations < 20  # all numbers have been left behind by then
    assert caught.value.residual == pytest.approx(1.0)


@pytest.mark.parametrize("where", [-1.0, 0.25])
def test_nan_within_the_bracket_raises(where: float) -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where((x - where).abs() < 0.2, torch.nan, x), torch.ones_like(x)

    y = torch.full((3,), where)
    with pytest.raises(ConvergenceError):
        BracketedNewton(max_iterations=50)(function, y, y - 3, y + 3)


def test_targets_that_are_not_finite_are_named() -> None:
    y = torch.tensor([0.0, torch.inf])
    with pytest.raises(ValueError, match=r"y: expected finite values, .* 1 of 2 entries \(1\)"):
        BracketedNewton()(lambda x: (x, torch.ones_like(x)), y, y, y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 0.0}, "tolerance: expected"),
        ({"max_iterations": 0}, "max_iterations: exp"),
        ({"unsolved": "skip"}, "unsolved: expected 'raise' or 'nan', got 'skip'"),
    ],
)
def test_bad_options_are_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BracketedNewton(**options)
