"""Monotone transforms: the defining equations, the log-determinant, gradients through w(x)."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_resflow.logdet import Exact, Krylov, PowerSeries
from pyro_resflow.nn import LipschitzMLP
from pyro_resflow.solvers import Anderson, ConvergenceError
from pyro_resflow.transforms import Monotone, is_deterministic, monotone, set_logdet
from tests.derivatives import check_gradients, jacobian
from tests.networks import NETWORKS

SOLVER = Anderson(tolerance=1e-14)


def block(name: str, lipschitz: float = 0.9) -> tuple[Monotone, Tensor]:
    """A transform in float64 with the exact log-determinant, and points."""
    net, event_shape = NETWORKS[name](lipschitz)
    net.double()
    transform = Monotone(net, event_dim=len(event_shape), logdet=Exact(), solver=SOLVER)
    return transform, torch.randn(3, *event_shape, dtype=torch.float64)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_value_is_that_of_the_equations(name: str) -> None:
    transform, x = block(name)
    with torch.no_grad():
        y = transform(x)
        w = (x + y) / math.sqrt(2)
        torch.testing.assert_close(w + transform.net(w), math.sqrt(2) * x)
        torch.testing.assert_close(w - transform.net(w), math.sqrt(2) * y)


def test_linear_contraction_gives_its_cayley_transform() -> None:
    net = nn.Linear(3, 3, bias=False).double()
    nn.init.orthogonal_(net.weight, gain=0.8)
    transform = Monotone(net, logdet=Exact())
    x = torch.randn(5, 3, dtype=torch.float64)
    identity = torch.eye(3, dtype=torch.float64)
    cayley = torch.linalg.solve(identity + net.weight, identity - net.weight)
    torch.testing.assert_close(transform(x), x @ cayley.T, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize("inverse", [False, True])
def test_log_det_is_that_of_the_jacobian(name: str, inverse: bool) -> None:
    transform, x = block(name)
    function = transform._inverse if inverse else transform._call
    pass_ = transform.inverse_and_ladj if inverse else transform.call_and_ladj
    expected = torch.linalg.slogdet(jacobian(function, x))[1]
    ladj = -pass_(x)[1] if inverse else pass_(x)[1]
    torch.testing.assert_close(ladj, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", ["mlp", "conv_net", "plain_module"])
@pytest.mark.parametrize("inverse", [False, True])
def test_gradients_go_through_the_solution(name: str, inverse: bool) -> None:
    transform, x = block(name, 0.8)
    run = transform.inverse_and_ladj if inverse else transform.call_and_ladj
    weight, slope = torch.randn(3, dtype=torch.float64), torch.randn_like(x)

    def loss() -> Tensor:
        image, ladj = run(x)
        return (image * slope).sum() + (ladj * weight).sum()

    x.requires_grad_()
    check_gradients(loss, [x, *transform.parameters()], rtol=1e-5, atol=1e-6, entries=3)


@pytest.mark.parametrize("inverse", [False, True])
def test_default_estimator_has_unbiased_values_and_gradients(inverse: bool) -> None:
    exact, x = block("mlp")
    noisy = Monotone(exact.net, logdet=Krylov(), solver=SOLVER)
    found = []
    for transform, copies in ((exact, 1), (noisy, 3000)):
        many = x[:1].expand(copies, -1).clone().requires_grad_()
        run = transform.inverse_and_ladj if inverse else transform.call_and_ladj
        ladj = run(many)[1]
        (gradient,) = torch.autograd.grad(ladj.sum(), many)
        found.append(torch.cat([ladj.detach()[:, None], gradient], dim=1))
    truth, draws = found[0][0], found[1]
    # a call's number of products is one for all: these are conditional on nothing but the probes
    z = (draws.mean(0) - truth) / (draws.std(0) / len(draws) ** 0.5)
    assert z.abs().max() < 4


def test_stretches_beyond_what_a_residual_transform_can() -> None:
    net = nn.Linear(1, 1, bias=False)
    net.weight.data.fill_(-0.9)
    transform = Monotone(net)
    x = torch.ones(1, 1)
    assert transform(x).item() == pytest.approx(19, rel=1e-4)
    assert transform.inv(x).item() == pytest.approx(1 / 19, rel=1e-4)


def test_fits_data() -> None:
    transform = monotone(2, [16])
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    flow = dist.TransformedDistribution(base, [transform])
    x = torch.randn(100, 2) * torch.tensor([3.0, 0.4])
    optimizer = torch.optim.Adam(transform.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = -flow.log_prob(x).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5


def test_estimator_can_be_exchanged() -> None:
    transform = monotone(20, [8])
    assert not is_deterministic(transform)
    set_logdet(transform, Exact())
    assert is_deterministic(transform)


def test_terms_of_the_series_are_the_odd_powers() -> None:
    net, event_shape = NETWORKS["mlp"](0.9)
    x = torch.randn(4, *event_shape)
    ladjs = []
    for terms in (1, 2, 3):
        torch.manual_seed(3)
        ladjs.append(Monotone(net, logdet=PowerSeries(terms)).call_and_ladj(x)[1])
    torch.testing.assert_close(ladjs[0], ladjs[1], rtol=0, atol=0)
    assert not torch.equal(ladjs[1], ladjs[2])


def test_no_contraction_is_an_error_in_either_direction() -> None:
    net = nn.Linear(2, 2, bias=False)
    net.weight.data.copy_(torch.tensor([[0.0, 2.0], [-2.0, 0.0]]))
    transform = Monotone(net, solver=Anderson(depth=1, max_iterations=30))
    for function in (transform._call, transform._inverse):
        with pytest.raises(ConvergenceError):
            function(torch.randn(3, 2))


def test_wrong_shape_is_named() -> None:
    with pytest.raises(ValueError, match="x: expected shape"):
        Monotone(LipschitzMLP(3))(torch.randn(5, 2))


def test_trains_under_bfloat16_autocast() -> None:
    transform = monotone(12, [8])
    x = torch.randn(5, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, ladj = transform.call_and_ladj(x)
        loss = y.square().sum() - ladj.sum()
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in transform.parameters())
    torch.testing.assert_close(transform._inverse(y.detach()), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("logdet", [Krylov(), PowerSeries(10)])
def test_estimates_on_the_meta_device(logdet: Krylov | PowerSeries) -> None:
    with torch.device("meta"):
        transform = monotone(12, [8], logdet=logdet)
        y, ladj = transform.call_and_ladj(torch.randn(5, 12))
        (y.sum() + ladj.sum()).backward()
    assert ladj.is_meta
    assert all(parameter.grad.is_meta for parameter in transform.parameters())
