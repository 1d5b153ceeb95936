"""Batches of any shape, and independence of the samples of a batch."""

from __future__ import annotations

import pytest
import torch

from pyro_resflow.nn import LipschitzLinear, LipschitzMLP
from pyro_resflow.solvers import Anderson, FixedPoint, NewtonKrylov, Solver
from tests.solvers.cases import SOLVERS, network


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


def test_meta_tensors_pass_through() -> None:
    with torch.device("meta"):
        net = LipschitzMLP(4, [8])
        for solver in SOLVERS:
            assert solver()(net, torch.empty(3, 4)).shape == (3, 4)
