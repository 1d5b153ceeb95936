"""The stacked Jacobians of several networks are those of each network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyro_resflow.nn import (
    ELU,
    Chain,
    ConditionalLipschitzMLP,
    FixedLipSwish,
    GatedLipschitzMLP,
    InfinityNormLinear,
    LipschitzDenseNet,
    LipschitzLinear,
    LipschitzMLP,
    LipSwish,
    Pila,
    SharpLipSwish,
    Tanh,
)
from pyro_resflow.nn.networks.stacked import JacobianStack

N, D = 5, 3

MAKERS: dict[str, Callable[[], Any]] = {
    "perceptron": lambda: LipschitzMLP(D, [7, 4]),
    "other activation": lambda: LipschitzMLP(D, [7, 4], activation=ELU),
    "sharp": lambda: LipschitzMLP(D, [7, 4], activation=SharpLipSwish),
    "gated": lambda: GatedLipschitzMLP(D, [7]),
    "shifted": lambda: ConditionalLipschitzMLP(D, 2, [7]).bind(torch.randn(N, 2)),
}


def made(name: str, number: int) -> list[Any]:
    """Networks of a kind in double precision, with random weights."""
    nets = []
    with torch.no_grad():
        for _ in range(number):
            nets.append(MAKERS[name]().double())
            for parameter in nets[-1].parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
            for part in nets[-1].modules():  # the shifts of the context are no parameters
                if hasattr(part, "shift"):
                    part.shift = part.shift.double()
    return nets


def stack_of(nets: list[Any], points: Tensor) -> JacobianStack:
    bound = [net.bound() for net in nets]
    pairs = [
        each.value_and_jacobian_inputs(x, each.coefficients())
        for each, x in zip(bound, points, strict=True)
    ]
    for net, x, (value, _) in zip(nets, points, pairs, strict=True):
        torch.testing.assert_close(value, net(x))
    return JacobianStack(bound[0], [inputs for _, inputs in pairs])


@pytest.mark.parametrize("name", MAKERS)
def test_products_and_rows_are_those_of_each_jacobian(name: str) -> None:
    nets, points = made(name, 3), torch.randn(3, N, D, dtype=torch.float64)
    jacobians = []
    for net, x in zip(nets, points, strict=True):
        full = torch.autograd.functional.jacobian(net, x)
        jacobians.append(torch.stack([full[i, :, i] for i in range(N)]))
    jacobian = torch.cat(jacobians)
    with torch.no_grad():
        linearized = stack_of(nets, points).linearize(points.flatten(0, 1))
        for vectors in (1, 2):
            v = torch.randn(vectors, 3 * N, D, dtype=torch.float64)
            torch.testing.assert_close(
                linearized.jvp(v), torch.einsum("nij,snj->sni", jacobian, v)
            )
            torch.testing.assert_close(
                linearized.vjp(v.clone()), torch.einsum("nji,snj->sni", jacobian, v)
            )
        torch.testing.assert_close(linearized.full_jacobian().rows, jacobian.mT)
        torch.testing.assert_close(linearized.transposed_jacobian(), jacobian.mT)


@pytest.mark.parametrize("vectors", [1, 2])
@pytest.mark.parametrize("name", MAKERS)
def test_gradients_are_those_of_autograd(name: str, vectors: int) -> None:
    stack = stack_of(made(name, 3), torch.randn(3, N, D, dtype=torch.float64))
    coefficients = [each.detach().requires_grad_() for each in stack.coefficients()]
    x = torch.zeros(3 * N, D, dtype=torch.float64)
    v, w = torch.randn(2, vectors, 3 * N, D, dtype=torch.float64)
    rows = torch.randn(3 * N, D, D, dtype=torch.float64)

    product = (stack.linearize(x, coefficients).jvp(v) * w).sum()
    expected = torch.autograd.grad(product, coefficients)
    units = torch.eye(D, dtype=torch.float64)[:, None].expand(D, 3 * N, D)
    columns = stack.linearize(x, coefficients).jvp(units)
    expected_of_rows = torch.autograd.grad((columns.movedim(0, 1) * rows).sum(), coefficients)

    needed = [False, *[True] * len(coefficients)]
    with torch.no_grad():
        found = stack.linearize(x, coefficients).dual_vjp(v, x, w.clone(), needed)
        jacobian = stack.linearize(x, coefficients).full_jacobian()
        of_rows = jacobian.pulled(x, rows.clone(), needed)
    assert found[0] is of_rows[0] is None
    torch.testing.assert_close(found[1:], list(expected))
    torch.testing.assert_close(of_rows[1:], list(expected_of_rows))


class Sharp(LipSwish):
    """An activation of another package, which may have settings."""


def test_networks_of_one_layout_differ_in_their_coefficients_alone() -> None:
    layouts = [
        LipschitzMLP(3, [7]),
        LipschitzMLP(3, [7, 7]),
        LipschitzMLP(3, [6]),
        LipschitzMLP(3, [7], activation=Tanh),
        LipschitzMLP(3, [7]).double(),
        Chain([LipschitzLinear(3, 7, bias=False), LipSwish(), LipschitzLinear(7, 3)]),
        GatedLipschitzMLP(3, [7]),
        GatedLipschitzMLP(3, [7], reach=2.0),
    ]
    found = [net.bound().layout() for net in layouts]  # type: ignore[attr-defined]
    assert None not in found
    assert len(set(found)) == len(found)
    for net, layout in zip(layouts, found, strict=True):
        for parameter in net.parameters():
            nn.init.normal_(parameter)
        assert net.bound().layout() == layout  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "net",
    [
        LipschitzMLP(3, [7], activation=Pila),
        LipschitzMLP(3, [7], activation=Sharp),
        LipschitzDenseNet(3, growth=2, depth=2),
        GatedLipschitzMLP(3, [7], activation=Sharp),
    ],
    ids=lambda net: type(net).__name__,
)
def test_other_networks_have_no_layout(net: Chain | GatedLipschitzMLP) -> None:
    assert net.bound().layout() is None  # type: ignore[attr-defined]


def test_fixed_betas_are_coefficients() -> None:
    """The gains are multiplied into the weights, so that they may differ within a stack."""
    nets = [
        Chain([InfinityNormLinear(3, 7), FixedLipSwish(beta), InfinityNormLinear(7, 3)]).double()
        for beta in (1.0, 4.0)
    ]
    assert nets[0].bound().layout() == nets[1].bound().layout()  # type: ignore[attr-defined]
    points = torch.randn(2, N, D, dtype=torch.float64)
    v = torch.randn(1, 2 * N, D, dtype=torch.float64)
    with torch.no_grad():
        found = stack_of(nets, points).linearize(v[0]).jvp(v)[0].split(N)
        for net, x, part, along in zip(nets, points, found, v[0].split(N), strict=True):
            torch.testing.assert_close(part, net.linearize(x).jvp(along[None])[0])
