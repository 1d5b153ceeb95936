from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from pyro_resflow.linearization import WithCoefficients
from pyro_resflow.nn import Chain, LipschitzConvNet, LipschitzLinear, LipschitzMLP
from pyro_resflow.solvers import (
    Anderson,
    ConvergenceError,
    FixedPoint,
    FixedPointIteration,
    NewtonKrylov,
    Solver,
    anderson,
)
from tests.derivatives import central_differences
from tests.networks import IMAGE, NETWORKS, activate_constraints, converged_norm

SOLVERS: list[type[Solver]] = [FixedPoint, Anderson, NewtonKrylov]
LIPSCHITZ = 0.97


def network(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, torch.Size]:
    net, event_shape = NETWORKS[name](LIPSCHITZ)
    return net.to(dtype), event_shape


def linear_network(weight: Tensor) -> Chain:
    """x -> W x, with W brought to the Lipschitz constant."""
    layer = LipschitzLinear(*weight.shape, converged_norm(LIPSCHITZ), bias=False)
    layer.weight = nn.Parameter(100 * weight)
    return Chain([layer]).to(weight.dtype)


def evaluations(solve: Callable[[], Tensor]) -> int:
    """How often a solver evaluates the network."""
    call = WithCoefficients.__call__
    with (
        torch.no_grad(),
        mock.patch.object(WithCoefficients, "__call__", autospec=True, side_effect=call) as spy,
    ):
        solve()
    return spy.call_count


class NoSolution(nn.Module):
    """x + g(x) = tanh(x): nothing maps to what is beyond 1."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x) - x


class Stretch(nn.Module):
    """g(x) = 3x."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * x


class Fold(nn.Module):
    """g(x) = .97 Q |x|, a contraction with kinks everywhere."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        q = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64))[0]
        self.register_buffer("matrix", LIPSCHITZ * q)

    def forward(self, x: Tensor) -> Tensor:
        return x.abs() @ self.matrix.T


# --- the solution -------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_inverse_in_double_precision(name: str, solver: type[Solver]) -> None:
    net, event_shape = network(name)
    x = torch.randn(64, *event_shape, dtype=torch.float64)
    found = solver()(net, x + net(x), len(event_shape))
    assert (found - x).abs().max() < 1e-9


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_inverse_in_single_precision_is_within_rounding(name: str, solver: type[Solver]) -> None:
    net, event_shape = network(name, torch.float32)
    x = torch.randn(1000, *event_shape)
    y = x + net(x)
    # y of up to 8 in size is itself known to half a unit of 8 * 1.2e-7 only
    size = y.abs().flatten(1).amax(1).clamp_min(1)
    error = (solver()(net, y, len(event_shape)) - x).abs().flatten(1).amax(1)
    assert (error / size).max() < 5e-7


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    "make",
    [
        lambda norm: LipschitzMLP(4, [16, 16], norm=norm),
        lambda norm: LipschitzConvNet(IMAGE, [6, 6], norm=norm),
    ],
    ids=["mlp", "conv_net"],
)
@torch.no_grad()
def test_inverse_in_single_precision_to_a_millionth(make, solver: type[Solver]) -> None:
    net = activate_constraints(make(converged_norm(LIPSCHITZ ** (1 / 3))), bias=0.0)
    x = torch.randn(64, *getattr(net, "event_shape", (4,)))
    assert (solver()(net, x + net(x)) - x).abs().max() < 1e-6


@pytest.mark.parametrize("solver", SOLVERS)
@torch.no_grad()
def test_inverse_where_the_jacobian_reaches_minus_the_constant(solver: type[Solver]) -> None:
    a = torch.randn(6, 6, dtype=torch.float64)
    net = linear_network(-(a @ a.T))
    x = torch.randn(16, 6, dtype=torch.float64)
    y = x + net(x)
    # the residual's tolerance times 1 / (1 - .97)
    bound = 2e-11 * y.abs().max().clamp_min(1) * 34 * 6**0.5
    assert (solver()(net, y) - x).abs().max() < bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", SOLVERS)
@torch.no_grad()
def test_rotation_by_the_constant_is_inverted(solver: type[Solver], dtype: torch.dtype) -> None:
    # the hardest for all three: eigenvalues all around the circle, x up to 33 times as long as y
    rotation = torch.linalg.qr(torch.randn(64, 64, dtype=torch.float64))[0].to(dtype)
    net = linear_network(rotation)
    y = torch.randn(8, 64, dtype=dtype)
    x = solver()(net, y)
    weight = net[0].effective_weight().double()
    truth = torch.linalg.solve(torch.eye(64, dtype=torch.float64) + weight, y.double().T).T
    # a residual within tolerance, or the 16 units to which x and g(x) are rounded in float32
    residual = 2e-11 if dtype == torch.float64 else 16 * 1.2e-7 * truth.abs().max()
    assert (x - truth).abs().max() < 34 * 64**0.5 * residual


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", ["mlp", "conv_net", "plain_module"])
@pytest.mark.parametrize("batch_shape", [(), (3,), (3, 4), (0,)])
@torch.no_grad()
def test_any_batch_shape(batch_shape: tuple[int, ...], name: str, solver: type[Solver]) -> None:
    net, event_shape = network(name)
    x = torch.randn(*batch_shape, *event_shape, dtype=torch.float64)
    y = x + net(x.reshape(-1, *event_shape)).reshape(x.shape)
    found = solver()(net, y, None if name != "plain_module" else 1)
    assert found.shape == x.shape
    torch.testing.assert_close(found, x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
def test_tolerance_is_kept(solver: type[Solver]) -> None:
    net, _ = network("mlp")
    y = 5 * torch.randn(32, 4, dtype=torch.float64)
    spent = []
    for tolerance in (1e-2, 1e-6, 1e-12):
        x = solver(tolerance=tolerance)(net, y)
        residual = (y - x - net(x)).abs().amax(1) / y.abs().amax(1).clamp_min(1)
        assert residual.max() <= tolerance
        spent.append(evaluations(lambda t=tolerance: solver(tolerance=t)(net, y)))
    assert spent[0] < spent[1] < spent[2]


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_anderson_needs_no_more_evaluations_than_banach(name: str) -> None:
    net, event_shape = network(name)
    x = torch.randn(64, *event_shape, dtype=torch.float64)
    y = x + net(x)
    banach = evaluations(lambda: FixedPoint()(net, y, len(event_shape)))
    anderson = evaluations(lambda: Anderson()(net, y, len(event_shape)))
    assert anderson <= banach
    if name in ("mlp", "plain_module"):  # where the Jacobian comes nearest to the constant
        assert banach > 90
        assert 5 * anderson < banach


@pytest.mark.parametrize("patience", [1, 3, 5])
@pytest.mark.parametrize("seed", range(5))
@torch.no_grad()
def test_anderson_converges_where_it_stalls(seed: int, patience: int) -> None:
    torch.manual_seed(seed)
    net = Fold(4)
    x = torch.randn(64, 4, dtype=torch.float64)
    # the tolerance is relative to |y|, at most 2 |x|; 34 is 1 / (1 - .97); the constant holds in
    # the Euclidean norm, at most twice the largest of four entries
    error = Anderson(patience=patience)(net, x + net(x)) - x
    assert error.abs().max() < 2e-11 * 34 * 2 * x.abs().max() * 2


@torch.no_grad()
def test_anderson_falls_back_to_banach_where_its_steps_lead_astray(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def astray(iteration: FixedPointIteration, steps: list, changes: list) -> Tensor:
        banach = iteration.x + iteration.residual
        remembers = sum((step.abs().sum(1) for step in steps), torch.zeros(16)) > 0
        return torch.where(remembers[:, None], 5 - 2 * banach, banach)

    monkeypatch.setattr(anderson, "_anderson_point", astray)
    net, _ = network("mlp")
    x = torch.randn(16, 4, dtype=torch.float64)
    assert (Anderson()(net, x + net(x)) - x).abs().max() < 1e-9


@pytest.mark.parametrize("depth", [1, 3])
@torch.no_grad()
def test_any_depth_and_krylov_space_will_do(depth: int) -> None:
    net, _ = network("mlp")
    x = torch.randn(16, 4, dtype=torch.float64)
    for solver in (Anderson(depth, patience=1), NewtonKrylov(depth)):
        assert (solver(net, x + net(x)) - x).abs().max() < 1e-9


# --- one sample and its neighbours --------------------------------------------------------------


@pytest.mark.parametrize("solver", [FixedPoint, Anderson])
@torch.no_grad()
def test_sample_does_not_depend_on_its_neighbours(solver: type[Solver]) -> None:
    net, _ = network("mlp")
    y = torch.randn(6, 4, dtype=torch.float64) * torch.logspace(-3, 2, 6)[:, None]
    together = solver()(net, y)
    alone = torch.cat([solver()(net, row[None]) for row in y])
    # matrix products of other shapes round differently, on numbers of up to 300
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_newton_sample_depends_on_its_neighbours_by_less_than_the_tolerance() -> None:
    # they share the Krylov steps of the slowest
    net, _ = network("mlp")
    y = torch.randn(6, 4, dtype=torch.float64) * torch.logspace(-3, 2, 6)[:, None]
    solver = NewtonKrylov(tolerance=1e-10)
    alone = torch.cat([solver(net, row[None]) for row in y])
    torch.testing.assert_close(solver(net, y), alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
@torch.no_grad()
def test_sample_that_has_converged_is_frozen(solver: type[Solver]) -> None:
    net, _ = network("mlp")
    for layer in net:
        if isinstance(layer, LipschitzLinear):
            layer.bias.zero_()
    y = torch.cat([torch.zeros(1, 4), torch.randn(5, 4)]).double()
    x = solver()(net, y)
    assert not x[0].any()  # g(0) = 0: solved before the first step
    solved = solver(tolerance=1e-3)(net, y)
    residual = (y - solved - net(solved)).abs().amax(1)
    assert residual[1:].min() > 1e-9  # none was driven on to where the slowest ended


# --- gradients ----------------------------------------------------------------------------------


def tensors_of(net: nn.Module) -> list[Tensor]:
    return list(net.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    net, event_shape = network(name)
    y = torch.randn(3, *event_shape, dtype=torch.float64, requires_grad=True)
    direction = torch.randn_like(y)

    def value() -> Tensor:
        found = Anderson(tolerance=1e-13)(net, y, len(event_shape))
        return (found * direction).sum()

    # the first step of a parameter makes the norm be measured in double precision
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1)
    inputs = [y, *net.parameters()]
    gradients = torch.autograd.grad(value(), inputs)
    for tensor, gradient in zip(inputs, gradients, strict=True):
        indices, differences = central_differences(value, tensor, entries=2)
        # good to step^2 and to the solver's 1e-13 / step
        torch.testing.assert_close(gradient.flatten()[indices], differences, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("solver", [FixedPoint, NewtonKrylov])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_do_not_depend_on_the_solver(name: str, solver: type[Solver]) -> None:
    net, event_shape = network(name)
    y = torch.randn(3, *event_shape, dtype=torch.float64, requires_grad=True)
    direction = torch.randn_like(y)
    inputs = [y, *net.parameters()]

    def gradients(solve: Solver) -> tuple[Tensor, ...]:
        return torch.autograd.grad(solve(net, y, len(event_shape)), inputs, direction)

    torch.testing.assert_close(gradients(solver()), gradients(Anderson()), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("solver", SOLVERS)
def test_gradient_solves_the_transposed_system(solver: type[Solver]) -> None:
    a = torch.randn(40, 40, dtype=torch.float64)
    net = linear_network(a)  # far from symmetric, and with more dimensions than a Krylov cycle
    y = torch.randn(5, 40, dtype=torch.float64, requires_grad=True)
    direction = torch.randn_like(y)
    (gradient,) = torch.autograd.grad(solver()(net, y), y, direction)
    matrix = torch.eye(40, dtype=torch.float64) + net[0].effective_weight().detach()
    torch.testing.assert_close(
        gradient, torch.linalg.solve(matrix.T, direction.T).T, rtol=1e-8, atol=1e-9
    )


def test_gradient_is_solved_even_where_few_iterations_are_allowed() -> None:
    rotation = torch.linalg.qr(torch.randn(64, 64, dtype=torch.float64))[0]
    net = linear_network(rotation)
    y = torch.randn(3, 64, dtype=torch.float64, requires_grad=True)
    x = NewtonKrylov(max_iterations=100)(net, y)
    direction = torch.randn_like(y)
    (gradient,) = torch.autograd.grad(x, y, direction)
    matrix = torch.eye(64, dtype=torch.float64) + net[0].effective_weight().detach()
    truth = torch.linalg.solve(matrix.T, direction.T).T
    torch.testing.assert_close(gradient, truth, rtol=0, atol=34 * 2e-11 * truth.abs().max())


class Spy(Chain):
    """A network that counts its vector-Jacobian products."""

    vjps = 0

    def linearize(self, x: Tensor, coefficients: Sequence[Tensor] | None = None) -> Any:
        linearization = super().linearize(x, coefficients)
        vjp = linearization.vjp

        def counted(w: Tensor) -> Tensor:
            self.vjps += 1
            return vjp(w)

        linearization.vjp = counted
        return linearization


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_backward_pass_takes_a_handful_of_products(dtype: torch.dtype) -> None:
    spy = Spy(network("conv_net", dtype)[0], event_dim=3)
    y = torch.randn(64, *IMAGE, dtype=dtype, requires_grad=True)
    Anderson()(spy, y, 3).square().sum().backward()
    assert 0 < spy.vjps <= 12


@pytest.mark.parametrize("wanted", ["y", "parameters", "nothing"])
def test_gradients_go_where_they_are_wanted(wanted: str) -> None:
    net, _ = network("mlp")
    net.requires_grad_(wanted == "parameters")
    y = torch.randn(3, 4, dtype=torch.float64, requires_grad=wanted == "y")
    x = Anderson()(net, y)
    assert x.requires_grad == (wanted != "nothing")
    if wanted != "nothing":
        x.square().sum().backward()
    assert (y.grad is not None) == (wanted == "y")
    assert all((p.grad is not None) == (wanted == "parameters") for p in net.parameters())


def test_change_of_the_weights_before_the_backward_pass_is_an_error() -> None:
    net, _ = network("mlp")
    x = Anderson()(net, torch.randn(3, 4, dtype=torch.float64))
    with torch.no_grad():
        net[0].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        x.sum().backward()


def test_second_derivatives_are_refused_rather_than_wrong() -> None:
    net, _ = network("mlp")
    y = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(Anderson()(net, y).square().sum(), y, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        gradient.sum().backward()


# --- no solution --------------------------------------------------------------------------------


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


# --- bad arguments ------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    ("match", "arguments"),
    [
        ("tolerance", {"tolerance": 0.0}),
        ("tolerance", {"tolerance": -1e-3}),
        ("tolerance", {"tolerance": torch.nan}),
        ("max_iterations", {"max_iterations": 0}),
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


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-7), (torch.float64, 2e-11)])
def test_default_tolerance_follows_the_dtype(dtype: torch.dtype, tolerance: float) -> None:
    assert Anderson().tolerance_for(dtype) == tolerance
    assert Anderson(tolerance=1e-3).tolerance_for(dtype) == 1e-3


def test_meta_tensors_pass_through() -> None:
    with torch.device("meta"):
        net = LipschitzMLP(4, [8])
        for solver in SOLVERS:
            assert solver()(net, torch.empty(3, 4)).shape == (3, 4)
