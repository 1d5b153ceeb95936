"""A perceptron taken as one is the same as its stages one after the other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyro_resflow.nn import (
    ELU,
    Activation,
    Chain,
    CLipSwish,
    LipschitzConv2d,
    LipschitzLinear,
    LipschitzMLP,
    LipSwish,
    Pila,
    Shift,
    Softplus,
    Tanh,
)
from pyro_resflow.nn.stages import LinearizedPerceptron, LinearizedStages, is_perceptron

N = 5


def perceptron(activation: Callable[[], Activation], hidden: list[int]) -> Chain:
    return LipschitzMLP(3, hidden, activation=activation).double()


def shifted() -> Chain:
    """With shifts after its affine maps: for each sample, for all samples, beside no bias."""
    layers = [LipschitzLinear(3, 7), Shift(torch.randn(N, 7)), LipSwish()]
    layers += [LipschitzLinear(7, 4, bias=False), Shift(torch.randn(1, 4)), Tanh()]
    return Chain([*layers, LipschitzLinear(4, 3), Shift(torch.randn(N, 3))]).double()


SHAPES = {
    **{
        f"{phi.__name__} {hidden}": lambda phi=phi, hidden=hidden: perceptron(phi, hidden)
        for phi in (LipSwish, ELU, Tanh, Softplus, Pila)
        for hidden in ([7], [5, 4, 6])
    },
    "shifted": shifted,
}


@pytest.mark.parametrize("vectors", [1, 2])
@pytest.mark.parametrize("name", SHAPES)
def test_value_products_and_gradients_are_those_of_the_stages(name: str, vectors: int) -> None:
    net = SHAPES[name]()
    x, cotangent = torch.randn(2, N, 3, dtype=torch.float64)
    v, w = torch.randn(2, vectors, N, 3, dtype=torch.float64)

    def results(kind: type) -> list[Tensor | None]:
        with torch.no_grad():
            at_x = kind(net.stages(), x.clone(), net.coefficients())
            needed = [True] * (1 + len(net.coefficients()))
            products = [at_x.value.clone(), at_x.vjp(w), at_x.jvp(v)]
            return [*products, *at_x.dual_vjp(v, cotangent, w, needed)]

    assert is_perceptron(net.stages())
    torch.testing.assert_close(results(LinearizedPerceptron), results(LinearizedStages))


@pytest.mark.parametrize("vectors", [1, 2])
def test_products_are_differentiable(vectors: int) -> None:
    net = perceptron(LipSwish, [7, 4])
    x = torch.randn(N, 3, dtype=torch.float64, requires_grad=True)
    v, w = torch.randn(2, vectors, N, 3, dtype=torch.float64)

    def gradients(kind: type) -> tuple[Tensor, ...]:
        at_x = kind(net.stages(), x, net.coefficients())
        loss = (at_x.vjp(w) * v).sum() + at_x.jvp(v).sin().sum()
        return torch.autograd.grad(loss, [x, *net.parameters()], materialize_grads=True)

    torch.testing.assert_close(gradients(LinearizedPerceptron), gradients(LinearizedStages))


@pytest.mark.parametrize("without", range(9))
def test_only_the_gradients_that_are_wanted_are_computed(without: int) -> None:
    net = shifted()
    x, cotangent = torch.randn(2, N, 3, dtype=torch.float64)
    v, w = torch.randn(2, 1, N, 3, dtype=torch.float64)
    needed = [i != without for i in range(1 + len(net.coefficients()))]
    with torch.no_grad():
        found = net.linearize(x).dual_vjp(v, cotangent, w, needed)
        everything = net.linearize(x).dual_vjp(v, cotangent, w, [True] * len(needed))
    assert found[without] is None
    expected = [each if wanted else None for each, wanted in zip(everything, needed, strict=True)]
    torch.testing.assert_close(found, expected)


def test_the_input_and_the_value_stay_as_they_are() -> None:
    net = perceptron(LipSwish, [7])
    x = torch.randn(N, 3, dtype=torch.float64)
    before = x.clone()
    with torch.no_grad():
        at_x = net.linearize(x)
        value = at_x.value.clone()
        cotangent = torch.ones(N, 3, dtype=torch.float64)
        v = torch.ones(1, N, 3, dtype=torch.float64)
        at_x.dual_vjp(v, cotangent, v, [True] * (1 + len(net.coefficients())))
    for found, expected in ((x, before), (at_x.value, value), (v, torch.ones_like(v))):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


class Shifted(LipschitzLinear):
    """A layer with a map of its own."""

    def affine(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return super().affine(x, weight, bias) + 1


def test_other_networks_go_by_their_stages() -> None:
    assert is_perceptron(
        Chain([LipschitzLinear(3, 4), LipSwish(), LipschitzLinear(4, 3)]).stages()
    )
    for layers in (
        [LipschitzLinear(3, 3)],
        [LipSwish(), LipschitzLinear(3, 3)],
        [LipschitzLinear(3, 4), LipSwish(), LipSwish(), LipschitzLinear(4, 3)],
        [LipschitzLinear(3, 4), CLipSwish(), LipschitzLinear(8, 3)],
        [LipschitzLinear(3, 4), LipSwish(), Shifted(4, 3)],
        [Shift(torch.randn(N, 3)), LipschitzLinear(3, 4), LipSwish(), LipschitzLinear(4, 3)],
        [LipschitzLinear(3, 4), LipSwish(), Shift(torch.randn(N, 4)), LipschitzLinear(4, 3)],
        [LipschitzLinear(3, 4), Tanh(), LipschitzLinear(4, 3), Tanh()],
        [LipschitzConv2d(1, 2, 1, (3, 3)), LipSwish(), LipschitzConv2d(2, 1, 1, (3, 3))],
    ):
        assert not is_perceptron(Chain(layers).stages())
    net = Chain([LipschitzLinear(3, 4), LipSwish(), Shifted(4, 3)])
    x = torch.randn(N, 3)
    torch.testing.assert_close(net.linearize(x).value, net(x))
    plane = perceptron(Tanh, [4])  # images whose rows are the vectors
    assert isinstance(plane.linearize(torch.randn(2, 4, 3).double()), LinearizedStages)
