"""Every solver finds the inverse, within rounding or the tolerance."""

from __future__ import annotations

import pytest
import torch

from pyro_resflow.nn import LipschitzConvNet, LipschitzMLP
from pyro_resflow.solvers import Anderson, NewtonKrylov, Solver
from tests.networks import IMAGE, NETWORKS, activate_constraints, converged_norm
from tests.solvers.cases import LIPSCHITZ, SOLVERS, evaluations, linear_network, network


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


@pytest.mark.parametrize("depth", [1, 3])
@torch.no_grad()
def test_any_depth_and_krylov_space_will_do(depth: int) -> None:
    net, _ = network("mlp")
    x = torch.randn(16, 4, dtype=torch.float64)
    for solver in (Anderson(depth, patience=1), NewtonKrylov(depth)):
        assert (solver(net, x + net(x)) - x).abs().max() < 1e-9


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-7), (torch.float64, 2e-11)])
def test_default_tolerance_follows_the_dtype(dtype: torch.dtype, tolerance: float) -> None:
    assert Anderson().tolerance_for(dtype) == tolerance
    assert Anderson(tolerance=1e-3).tolerance_for(dtype) == 1e-3
