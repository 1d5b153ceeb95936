"""Networks' values, products with their Jacobians, and gradients of both."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyro_resflow.linearization import AutogradNetwork, Linearizable
from pyro_resflow.nn import Chain, LipschitzMLP
from tests.derivatives import weighted_gradients
from tests.networks import NETWORKS
from tests.nn.networks.variants import CHAINS, VARIANTS, event_dims, settled


def drawn(variant: str) -> tuple[Chain, Tensor, Tensor, Tensor]:
    """A network, a batch x, and three tangents and three cotangents at each of its samples."""
    net, event_shape = VARIANTS[variant]()
    settled(net)
    x = torch.randn(2, *event_shape, dtype=torch.float64)
    v, w = torch.randn(2, 3, 2, *event_shape, dtype=torch.float64)
    return net, x, v, w


@pytest.mark.parametrize("variant", VARIANTS)
def test_linearization_agrees_with_autograd(variant: str) -> None:
    net, x, v, w = drawn(variant)
    expected = AutogradNetwork(net).linearize(x)
    found = net.linearize(x)
    torch.testing.assert_close(found.value, expected.value)
    torch.testing.assert_close(found.vjp(w), expected.vjp(w))
    torch.testing.assert_close(found.jvp(v), expected.jvp(v))
    torch.testing.assert_close(net.dual(x, v), (expected.value, expected.jvp(v)))
    torch.testing.assert_close(net(x), expected.value)
    with torch.no_grad():
        found = net.linearize(x)
        torch.testing.assert_close(found.value, expected.value)
        torch.testing.assert_close(found.vjp(w), expected.vjp(w))
        torch.testing.assert_close(found.jvp(v), expected.jvp(v))
        assert not found.value.requires_grad
        assert not found.jvp(v).requires_grad


@pytest.mark.parametrize("variant", VARIANTS)
def test_derivatives_of_value_and_tangents_are_those_of_autograd(variant: str) -> None:
    net, x, v, w = drawn(variant)
    bar = torch.randn_like(x)
    given = [t.clone() for t in (x, v, bar, w)]
    point = x.clone().requires_grad_()
    coefficients = [c.detach().requires_grad_() for c in net.coefficients()]
    linearization = net.linearize(point, coefficients)
    inputs = [point, *coefficients]
    outputs = (linearization.value, linearization.jvp(v))
    expected = weighted_gradients(outputs, (bar, w), inputs)
    with torch.no_grad():
        linearization = net.linearize(x, coefficients)
        value, product = linearization.value.clone(), linearization.vjp(w)
        needed = [True] * len(inputs)
        torch.testing.assert_close(linearization.dual_vjp(v, bar, w, needed), expected)
        # what is overwritten on the way belongs to nobody else
        torch.testing.assert_close([x, v, bar, w], given, rtol=0, atol=0)
        torch.testing.assert_close(linearization.value, value, rtol=0, atol=0)
        torch.testing.assert_close(net.linearize(x, coefficients).vjp(w), product)
        needed = [i % 2 == 0 for i in range(len(inputs))]
        found = net.linearize(x, coefficients).dual_vjp(v, bar, w, needed)
    for gradient, reference, wanted in zip(found, expected, needed, strict=True):
        if wanted:
            torch.testing.assert_close(gradient, reference)


@pytest.mark.parametrize("route", ["forward", "linearize", "dual"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_agree_with_autograd(variant: str, route: str) -> None:
    net, event_shape = VARIANTS[variant]()
    settled(net)
    x = torch.randn(2, *event_shape, dtype=torch.float64).requires_grad_()
    v = torch.randn(3, 2, *event_shape, dtype=torch.float64).requires_grad_()
    inputs = [x, v, *net.parameters()]
    weights = [torch.randn_like(x), torch.randn_like(v)]
    outputs = value_and_tangents(net, x, v, route)
    expected = value_and_tangents(AutogradNetwork(net), x, v, "linearize")
    if route == "forward":
        weights[1].zero_()
    torch.testing.assert_close(
        weighted_gradients(outputs, weights, inputs), weighted_gradients(expected, weights, inputs)
    )


def value_and_tangents(
    net: Linearizable, x: Tensor, v: Tensor, route: str
) -> tuple[Tensor, Tensor]:
    if route == "forward":
        return net(x), v
    if route == "linearize":
        linearization = net.linearize(x)
        return linearization.value, linearization.jvp(v)
    return net.dual(x, v)


@pytest.mark.parametrize("name", NETWORKS)
def test_output_has_the_shape_of_the_input(name: str) -> None:
    net, event_shape = NETWORKS[name](0.9)
    assert net(torch.randn(5, *event_shape)).shape == (5, *event_shape)
    assert event_dims(net) == len(event_shape)


@pytest.mark.parametrize("name", CHAINS)
def test_every_parameter_takes_part(name: str) -> None:
    net, event_shape = NETWORKS[name](0.9)
    x = torch.randn(5, *event_shape)
    value, tangents = net.dual(x, torch.randn(1, *x.shape))
    gradients = torch.autograd.grad((value + tangents[0]).square().sum(), list(net.parameters()))
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_second_derivatives_by_a_weight_are_refused_mixed_ones_are_right() -> None:
    network = LipschitzMLP(2, [4]).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3)
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    weight = network[0].weight
    with torch.no_grad():
        network(x)

    def by_x(weights: Tensor) -> Tensor:
        with torch.no_grad():
            weight.copy_(weights)
        return torch.autograd.grad(network(x).sum(), x, create_graph=True)[0].square().sum()

    start = weight.detach().clone()
    by_x(start).backward()
    found = weight.grad.clone()
    step = 1e-5 * torch.randn_like(start)
    difference = by_x(start + step) - by_x(start - step)
    torch.testing.assert_close((found * step).sum() * 2, difference.detach(), rtol=1e-3, atol=0)
    (first,) = torch.autograd.grad(network(x).square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="got a second one; the norm of a weight"):
        first.square().sum().backward()
