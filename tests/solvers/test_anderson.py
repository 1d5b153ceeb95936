"""Anderson's acceleration is faster than Banach's iteration, and as safe."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from benchmarks.operations import OperationCounter
from pyro_resflow.solvers import (
    Anderson,
    FixedPoint,
    FixedPointError,
    FixedPointIteration,
    NewtonKrylov,
    Solver,
)
from pyro_resflow.solvers.history import History
from tests.networks import NETWORKS
from tests.solvers.cases import LIPSCHITZ, evaluations, network


class Fold(nn.Module):
    """g(x) = .97 Q |x|, a contraction with kinks everywhere."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        q = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64))[0]
        self.register_buffer("matrix", LIPSCHITZ * q)

    def forward(self, x: Tensor) -> Tensor:
        return x.abs() @ self.matrix.T


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
    def astray(history: History) -> Tensor:
        banach = history.point.t()
        remembers = history.points.abs().sum((0, 1)) > 0
        return torch.where(remembers[:, None], 5 - 2 * banach, banach)

    monkeypatch.setattr(History, "next_point", astray)
    net, _ = network("mlp")
    x = torch.randn(16, 4, dtype=torch.float64)
    assert (Anderson()(net, x + net(x)) - x).abs().max() < 1e-9


@torch.no_grad()
def test_the_short_way_of_falling_residuals_gives_the_same_points(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net, _ = network("mlp")
    y = torch.randn(50, 4, dtype=torch.float64)
    short = Anderson()(net, y)
    assert short.is_contiguous()  # forward mode gives tangents the layout of their points
    monkeypatch.setattr(FixedPointIteration, "_falls", lambda *_: False)
    with OperationCounter() as by_sample:
        assert torch.equal(Anderson()(net, y), short)
    monkeypatch.undo()
    with OperationCounter() as counter:
        Anderson()(net, y)
    assert counter.counts.total() < 0.9 * by_sample.counts.total()


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_next_point_minimizes_the_combined_residual(size: int) -> None:
    points, residuals = torch.randn(2, size + 1, 7, 6, dtype=torch.float64)  # 7 samples
    history = History(5, points[0], residuals[0])
    for x, residual in zip(points[1:], residuals[1:], strict=True):
        history.record(x, residual)
    changes = residuals.diff(dim=0).permute(1, 2, 0)
    gamma = torch.linalg.lstsq(changes, residuals[-1][:, :, None]).solution
    moved = (points + residuals).diff(dim=0).permute(1, 2, 0)
    expected = points[-1] + residuals[-1] - (moved @ gamma)[:, :, 0]
    torch.testing.assert_close(history.next_point(), expected)
    forgotten = torch.arange(7) == 3
    history.forget(forgotten)
    expected[3] = points[-1][3] + residuals[-1][3]  # Banach's step
    torch.testing.assert_close(history.next_point(), expected)


class Rotation(nn.Module):
    """g(x) = c Q x, with eigenvalues all over the circle."""

    def __init__(self, dim: int, coefficient: float) -> None:
        super().__init__()
        self.register_buffer("matrix", coefficient * torch.linalg.qr(torch.randn(dim, dim))[0])

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix.T


@pytest.mark.parametrize("dim", [64, 90])
@torch.no_grad()
def test_newton_takes_over_where_anderson_gives_up(dim: int) -> None:
    net = Rotation(dim, 0.999)
    y = torch.randn(4, dim)
    x = Anderson(max_iterations=200)(net, y)
    assert (x + net(x) - y).abs().max() < 1e-6 * x.abs().max()
    with pytest.raises(FixedPointError):
        FixedPoint(max_iterations=100)(net, y)


@pytest.mark.parametrize("solver", [Anderson(), NewtonKrylov()], ids=["anderson", "newton"])
@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_near_the_limit_the_residual_is_that_of_rounding(seed: int, solver: Solver) -> None:
    # an eigenvalue is -0.999: the solution is hundreds of times as large as y
    torch.manual_seed(seed)
    net, y = Rotation(6, 0.999), torch.randn(4, 6)
    matrix = torch.eye(6, dtype=torch.float64) + net.matrix.double()
    truth = torch.linalg.solve(matrix, y.double().T).T
    assert truth.abs().max() > 100 * y.abs().max()
    eps = torch.finfo(torch.float32).eps

    def residual(x: Tensor) -> Tensor:
        return (x.double() @ matrix.T - y.double()).abs().amax(1)

    # not even the solution itself, in float32, is within the tolerance
    assert (residual(truth.float()) / y.abs().amax(1)).max() > 20 * 2e-7
    x = solver(net, y)
    assert (residual(x) < 16 * eps * x.abs().amax(1)).all()
    # and the error is up to 1 / (1 - 0.999) times as large
    assert ((x - truth).abs().amax(1) < 1000 * 16 * eps * truth.abs().amax(1)).all()
    exact = solver(net.double(), y.double())
    torch.testing.assert_close(exact, truth, rtol=0, atol=1e-7)


@torch.no_grad()
def test_newton_does_not_invert_what_is_no_contraction() -> None:
    with pytest.raises(FixedPointError, match=r"factor of g is 1\.5"):
        Anderson(max_iterations=100)(Rotation(64, 1.5), torch.randn(4, 64))
