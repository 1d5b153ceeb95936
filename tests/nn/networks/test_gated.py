"""Gated networks: their bound, estimators and inverses on them, and files."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pyro_resflow import checkpoints
from pyro_resflow.logdet import Exact, Krylov, LogDetEstimator, RussianRoulette
from pyro_resflow.nn import (
    Activation,
    GatedLipschitzMLP,
    check_contraction,
)
from pyro_resflow.nn.lipschitz_constant import nominal_lipschitz_constant
from pyro_resflow.transforms import Residual
from tests.derivatives import jacobian


def wild(**options: float) -> GatedLipschitzMLP:
    """A network with weights far above their bounds."""
    net = GatedLipschitzMLP(4, [8, 7], **options).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter))
    return net


@given(seed=st.integers(0, 2**16), reach=st.floats(0.1, 30.0), spread=st.floats(0.1, 30.0))
def test_jacobian_never_exceeds_the_coefficient(seed: int, reach: float, spread: float) -> None:
    torch.manual_seed(seed)
    net = wild(coefficient=0.9, reach=reach)
    x = spread * torch.randn(200, 4, dtype=torch.float64)
    largest = torch.linalg.matrix_norm(jacobian(net, x), torch.inf).max()
    assert largest <= 0.9 * (1 + 1e-12)
    assert net.lipschitz_bound() == pytest.approx(0.9)
    assert nominal_lipschitz_constant(net) == pytest.approx(0.9)
    check_contraction(net)


def test_an_entry_can_scale_another_by_nearly_the_whole_coefficient() -> None:
    net = GatedLipschitzMLP(2, [], coefficient=0.9).double()
    with torch.no_grad():
        net.gated.fill_(10.0)
        net.branch[0].weight.zero_()[0, 1] = 1.0
        net.branch[0].bias.zero_()
    # the first entry is multiplied by 1 - c, 1 and 1 + c, as the second one goes from -20 to 20
    x = torch.tensor([[0.01, -20.0], [0.01, 0.0], [0.01, 20.0]], dtype=torch.float64)
    factors = (x + net(x))[:, 0] / x[:, 0]
    expected = torch.tensor([0.1, 1.0, 1.9], dtype=torch.float64)
    torch.testing.assert_close(factors, expected, rtol=1e-3, atol=1e-3)


def test_value_is_the_formula() -> None:
    net = wild(coefficient=0.9, reach=2.0)
    x = torch.randn(5, 4, dtype=torch.float64)
    n, m = net.branch(x).chunk(2, dim=-1)
    a = 0.9 * torch.sigmoid(net.gated)
    expected = a * 2 * torch.tanh(x / 2) * torch.tanh(n / 2) + (0.9 - a) * m
    torch.testing.assert_close(net(x), expected)


def textbook(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The block's value and log-determinant by autograd alone."""
    y = x + net(x)
    rows = [torch.autograd.grad(y[:, i].sum(), x, create_graph=True)[0] for i in range(4)]
    return y, torch.linalg.slogdet(torch.stack(rows, 1))[1]


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_exact_gradients_are_those_of_autograd(chunk_size: int | None) -> None:
    net = wild()
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    w, s = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    inputs = [x, *net.parameters()]
    found = Residual(net, logdet=Exact(chunk_size=chunk_size)).call_and_ladj(x)
    expected = textbook(net, x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad((found[0] * w).sum() + found[1] @ s, inputs),
        torch.autograd.grad((expected[0] * w).sum() + expected[1] @ s, inputs),
    )


def test_second_derivatives_are_those_of_autograd() -> None:
    net = wild()
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    inputs = [x, *net.parameters()]
    found = []
    for _, ladj in (Residual(net, logdet=Exact()).call_and_ladj(x), textbook(net, x)):
        (slope,) = torch.autograd.grad(ladj.sum(), x, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), inputs, materialize_grads=True))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("logdet", [Krylov(), RussianRoulette()], ids=["krylov", "roulette"])
def test_estimators_and_their_gradients_are_unbiased(logdet: LogDetEstimator) -> None:
    net = wild(coefficient=0.9)
    x = torch.randn(1, 4, dtype=torch.float64)

    def mean(estimator: LogDetEstimator, copies: int) -> Tensor:
        """The mean log-determinant of copies of x, and its gradient."""
        many = x.expand(copies, 4).clone().requires_grad_()
        _, ladj = Residual(net, logdet=estimator).call_and_ladj(many)
        (slope,) = torch.autograd.grad(ladj.sum(), many)
        return torch.cat([ladj[:, None], slope], dim=1).detach().mean(0)

    # the number of terms is drawn once a call, so that only calls are independent
    draws = torch.stack([mean(logdet, 20) for _ in range(400)])
    z = (draws.mean(0) - mean(Exact(), 1)) / (draws.std(0) / len(draws) ** 0.5)
    assert z.abs().max() < 4.5


def test_the_inverse_solves_for_the_input() -> None:
    block = Residual(wild(coefficient=0.98))
    x = 3 * torch.randn(50, 4, dtype=torch.float64)
    torch.testing.assert_close(block._inverse(block(x)), x, rtol=1e-7, atol=1e-8)


def test_copies_and_files_give_the_same_values(tmp_path: Path) -> None:
    block = Residual(wild(reach=1.5), logdet=Exact())
    x = torch.randn(5, 4, dtype=torch.float64)
    checkpoints.save(block, tmp_path / "block.safetensors")
    for other in (
        copy.deepcopy(block),
        pickle.loads(pickle.dumps(block)),
        checkpoints.load(tmp_path / "block.safetensors"),
    ):
        torch.testing.assert_close(other.call_and_ladj(x), block.call_and_ladj(x))


def test_autocast_keeps_the_product_in_full_precision() -> None:
    net = GatedLipschitzMLP(4, [16])
    x = torch.randn(6, 4)
    block = Residual(net, logdet=Exact())
    y, ladj = block.call_and_ladj(x)
    with torch.autocast("cpu", torch.bfloat16):
        low, low_ladj = block.call_and_ladj(x)
        (low.sum() + low_ladj.sum()).backward()
    assert low.dtype == low_ladj.dtype == torch.float32
    torch.testing.assert_close((low, low_ladj), (y, ladj), rtol=0.05, atol=0.05)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_vmap_maps_over_samples() -> None:
    block = Residual(wild(), logdet=Exact())
    x = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(torch.func.vmap(block.call_and_ladj)(x), block.call_and_ladj(x))


class Steep(Activation):
    """An activation with a Lipschitz constant of 3."""

    def core(self, h: Tensor) -> Tensor:
        return 3 * h

    def core_slope(self, h: Tensor) -> Tensor:
        return torch.full_like(h, 3.0)

    def core_curvature(self, h: Tensor) -> Tensor:
        return torch.zeros_like(h)

    def lipschitz_bound(self) -> float:
        return 3.0


def test_an_activation_that_is_too_steep_is_reported() -> None:
    net = GatedLipschitzMLP(2, [4], activation=Steep)
    with torch.no_grad():
        net.branch[0].weight.fill_(1.0)
        net.branch[2].weight.fill_(1.0)
    with pytest.raises(ValueError, match=r"certified to at most 2\.9400 only. Its activations"):
        check_contraction(Residual(net))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"coefficient": 1.0}, "coefficient: expected 0 < coefficient < 1, got 1.0"),
        ({"coefficient": 0.0}, "coefficient: expected 0 < coefficient < 1, got 0.0"),
        ({"reach": 0.0}, "reach: expected a positive number, got 0.0"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        GatedLipschitzMLP(3, **options)


def test_hooks_are_refused() -> None:
    net = GatedLipschitzMLP(3, [4])
    net.branch.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"branch \(Chain\): expected no hooks"):
        net(torch.randn(2, 3))
