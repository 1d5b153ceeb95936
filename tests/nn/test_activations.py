from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_resflow.nn import (
    ELU,
    Activation,
    Chain,
    CLipSwish,
    Concatenated,
    CPila,
    FixedLipSwish,
    LipSwish,
    Pila,
    SharpLipSwish,
    Softplus,
    Tanh,
)
from tests.derivatives import reference_jvp, weighted_gradients

BETA = F.softplus(torch.tensor(0.5, dtype=torch.float64))


def lip_swish(h: Tensor) -> Tensor:
    return h * torch.sigmoid(BETA.to(h) * h) / 1.1


def pila(h: Tensor) -> Tensor:
    return torch.where(h > 0, h, (12.5 * h**3 - 5 * h**2 + h) * torch.exp(5 * h.clamp(max=0)))


def both_signs(function: Callable[[Tensor], Tensor], h: Tensor, shift: float = 0.0) -> Tensor:
    return torch.cat([function(h - shift), function(-h - shift)], dim=-1)


ELEMENTWISE: dict[str, tuple[Callable[[], Activation], Callable[[Tensor], Tensor]]] = {
    "LipSwish": (LipSwish, lip_swish),
    "FixedLipSwish": (FixedLipSwish, lambda h: h * torch.sigmoid(3 * h) / 1.1),
    "ELU": (ELU, F.elu),
    "Tanh": (Tanh, torch.tanh),
    "Softplus": (Softplus, F.softplus),
    "Pila": (Pila, pila),
}
CONCATENATED: dict[str, tuple[Callable[[], Activation], Callable[[Tensor], Tensor]]] = {
    "CLipSwish": (CLipSwish, lambda h: both_signs(lip_swish, h) / 1.004),
    "CPila": (CPila, lambda h: both_signs(pila, h, 0.2) / 1.06),
    "CTanh": (
        lambda: Concatenated(Tanh(), bound=2**0.5, shift=0.0),
        lambda h: both_signs(torch.tanh, h) / 2**0.5,
    ),
}
ALL = {**ELEMENTWISE, **CONCATENATED}


def make(name: str) -> Activation:
    return ALL[name][0]().double()


@pytest.mark.parametrize("name", ALL)
def test_value_is_the_textbook_formula(name: str) -> None:
    x = 3 * torch.randn(50, 4, dtype=torch.float64)
    # F.silu and the products with beta round differently from the formula: a few units of 1e-16
    torch.testing.assert_close(make(name)(x), ALL[name][1](x), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", ALL)
def test_slope_and_curvature_are_the_derivatives(name: str) -> None:
    phi = make(name)
    x = 3 * torch.randn(50, 4, dtype=torch.float64).requires_grad_()
    ones = torch.ones_like(x)

    def slope(point: Tensor) -> Tensor:
        return torch.autograd.functional.jvp(phi, point, ones, create_graph=True)[1]

    curvature = torch.autograd.functional.jvp(slope, x, ones)[1]
    torch.testing.assert_close(phi.slope(x), slope(x), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(phi.curvature(x), curvature, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("raw_beta", [-5.0, 0.5, 8.0])
@pytest.mark.parametrize("name", ALL)
def test_lipschitz_constant_is_one_and_not_wasted(name: str, raw_beta: float) -> None:
    phi = make(name)
    with torch.no_grad():
        for beta in phi.parameters():
            beta.fill_(raw_beta)
    grid = torch.linspace(-10, 10, 200_001, dtype=torch.float64)[:, None]
    if "LipSwish" in name:  # the largest slope is at beta h = 2.4
        grid = grid / F.softplus(torch.tensor(raw_beta, dtype=torch.float64))
    largest = torch.linalg.vector_norm(phi.slope(grid), dim=-1).max().item()
    assert 0.998 < largest <= 1


@pytest.mark.parametrize("name", ALL)
def test_linearize_matches_autograd(name: str) -> None:
    phi = make(name)
    x = torch.randn(6, 4, dtype=torch.float64)
    v = torch.randn(3, 6, 4, dtype=torch.float64)
    linearization = Chain([phi]).linearize(x)
    value = linearization.value
    w = torch.randn(3, *value.shape, dtype=torch.float64)
    expected_value, expected_tangents = reference_jvp(phi, x, v)
    cotangents = [torch.autograd.functional.vjp(phi, x, row)[1] for row in w]
    torch.testing.assert_close(value, expected_value)
    with torch.no_grad():
        fused = Chain([phi]).linearize(x)
        for found in (linearization, fused):
            torch.testing.assert_close(found.jvp(v), expected_tangents)
            torch.testing.assert_close(found.vjp(w), torch.stack(cotangents))


@pytest.mark.parametrize("name", ALL)
def test_gradients_of_value_and_tangents_match_autograd(name: str) -> None:
    phi = make(name)
    x = torch.randn(6, 4, dtype=torch.float64).requires_grad_()
    v = torch.randn(3, 6, 4, dtype=torch.float64).requires_grad_()
    value, tangents = Chain([phi]).dual(x, v)
    expected = reference_jvp(phi, x, v)
    torch.testing.assert_close((value, tangents), expected)
    weights = [torch.randn_like(value), torch.randn_like(tangents)]
    inputs = [x, v, *phi.parameters()]
    torch.testing.assert_close(
        weighted_gradients((value, tangents), weights, inputs),
        weighted_gradients(expected, weights, inputs),
    )


@pytest.mark.parametrize("name", ["LipSwish", "CLipSwish"])
def test_beta_is_learned(name: str) -> None:
    phi = make(name)
    (beta,) = phi.parameters()
    x = torch.randn(6, 4, dtype=torch.float64)
    v = torch.randn(2, 6, 4, dtype=torch.float64)

    def output(raw_beta: Tensor) -> tuple[Tensor, Tensor]:
        (key,) = dict(phi.named_parameters())
        return torch.func.functional_call(_Dual(phi), {f"chain.0.{key}": raw_beta}, (x, v))

    assert torch.autograd.gradcheck(output, beta)
    assert torch.autograd.grad(phi(x).sum(), beta)[0].abs() > 0.01


class _Dual(torch.nn.Module):
    def __init__(self, phi: Activation) -> None:
        super().__init__()
        self.chain = Chain([phi])

    def forward(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return self.chain.dual(x, v)


@pytest.mark.parametrize("name", ALL)
def test_single_precision_follows_double(name: str) -> None:
    single, double = ALL[name][0](), make(name)
    x = 3 * torch.randn(200, 4)
    for attribute in ("forward", "slope", "curvature"):
        got = getattr(single, attribute)(x)
        want = getattr(double, attribute)(x.double())
        assert got.dtype == torch.float32
        # Pila's polynomial cancels terms of up to 30 before the exponential damps them
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", ALL)
def test_large_inputs_stay_finite_in_single_precision(name: str) -> None:
    phi = ALL[name][0]()
    x = torch.tensor([[-1e4, -100.0, 0.0, 100.0, 1e4]]).requires_grad_()
    value, tangents = Chain([phi]).dual(x, torch.ones_like(x)[None])
    (grad,) = torch.autograd.grad(value.sum() + tangents.sum(), x)
    assert value.isfinite().all()
    assert tangents.isfinite().all()
    assert grad.isfinite().all()


def test_concatenation_doubles_the_channels_of_images() -> None:
    phi = CLipSwish(feature_dim=-3)
    x = torch.randn(5, 3, 2, 7)
    assert phi(x).shape == (5, 6, 2, 7)
    torch.testing.assert_close(phi(x)[:, :3], LipSwish()(x) / 1.004)
    torch.testing.assert_close(phi(x)[:, 3:], LipSwish()(-x) / 1.004)


@pytest.mark.parametrize("method", ["core", "core_slope", "core_curvature"])
def test_a_missing_method_is_named(method: str) -> None:
    class Unfinished(Activation):
        """An activation without a core."""

    with pytest.raises(NotImplementedError, match=rf"Unfinished: expected a method {method}\("):
        getattr(Unfinished(), method)(torch.ones(1))


@pytest.mark.parametrize("beta", [1e-3, 0.97, 4.0, 200.0])
def test_lipswish_starts_from_the_given_beta(beta: float) -> None:
    assert LipSwish(beta).input_gain().item() == pytest.approx(beta, rel=1e-5)


def test_sharp_lipswish_starts_from_four() -> None:
    assert SharpLipSwish().input_gain().item() == pytest.approx(4.0)
    x = torch.linspace(-3, 3, 7)
    torch.testing.assert_close(SharpLipSwish()(x), LipSwish(4.0)(x))


def test_lipswish_starts_from_the_published_parameter() -> None:
    assert LipSwish().raw_beta.item() == 0.5


@pytest.mark.parametrize("activation", [LipSwish, SharpLipSwish, FixedLipSwish])
@pytest.mark.parametrize("beta", [0.0, -1.0, float("nan"), float("inf")])
def test_a_beta_that_is_not_positive_is_refused(
    activation: Callable[[float], Activation], beta: float
) -> None:
    with pytest.raises(ValueError, match=f"beta: expected a positive number, got {beta}"):
        activation(beta)
