"""Gradients through the solution: exact, cheap, or an error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_resflow.nn import Chain, LipschitzMLP
from pyro_resflow.solvers import Anderson, FixedPoint, NewtonKrylov, Solver
from tests.derivatives import check_gradients
from tests.networks import IMAGE, NETWORKS
from tests.solvers.cases import SOLVERS, linear_network, network


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
    check_gradients(value, [y, *net.parameters()], rtol=1e-6, atol=1e-7, entries=2)


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


def test_second_derivatives_are_those_of_differences_for_any_solver() -> None:
    net, _ = network("mlp")
    y = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    for solver in (Anderson, FixedPoint, NewtonKrylov):
        assert torch.autograd.gradgradcheck(lambda y, s=solver: s()(net, y), y, fast_mode=True)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("samples", [1, 3])
def test_a_cotangent_that_is_not_finite_does_not_vanish(poison: float, samples: int) -> None:
    net = LipschitzMLP(3, [8])
    y = torch.randn(samples, 3, requires_grad=True)
    cotangent = torch.ones(samples, 3)
    cotangent[0, 1] = poison
    Anderson()(net, y).backward(cotangent)
    assert y.grad[0].isnan().all()
    assert y.grad[1:].isfinite().all()
    assert all(parameter.grad.isnan().any() for parameter in net.parameters())
