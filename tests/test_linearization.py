from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from pyro_resflow.differentiation import gradients_where_needed
from pyro_resflow.linearization import (
    AutogradNetwork,
    Linearizable,
    Negative,
    WithCoefficients,
    as_linearizable,
    flatten_batch,
    resolve_event_dim,
)
from pyro_resflow.logdet import Krylov
from pyro_resflow.nn import Chain, LipschitzMLP, LipSwish
from pyro_resflow.nn.networks import BoundChain
from pyro_resflow.transforms import Residual
from tests.derivatives import reference_jvp, weighted_gradients
from tests.networks import NETWORKS


class _Cube(torch.autograd.Function):
    """x^3 with a backward of its own and no forward-mode rule."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad


class Cube(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _Cube.apply(x)


class Constant(nn.Module):
    """Does not depend on its input."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.value.expand_as(x)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))


def conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ELU(), nn.Conv2d(4, 2, 1), nn.Softplus()
    )


def without_forward_mode() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), Cube(), nn.Linear(8, 3))


MODULES = {
    "mlp": (mlp, (3,)),
    "conv_net": (conv_net, (2, 4, 5)),
    "without forward mode": (without_forward_mode, (3,)),
}


def module_and_point(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    make, event_shape = MODULES[name]
    x = torch.randn(4, *event_shape, dtype=torch.float64)
    return make().double(), x, torch.randn(3, *x.shape, dtype=torch.float64)


@pytest.mark.parametrize("name", MODULES)
def test_products_are_those_of_the_jacobian(name: str) -> None:
    net, x, v = module_and_point(name)
    expected = reference_jvp(net, x, v)
    cotangents = torch.stack([torch.autograd.functional.vjp(net, x, row)[1] for row in v])
    adapter = AutogradNetwork(net)
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            linearization = adapter.linearize(x)
            found = (linearization.value, linearization.jvp(v))
            torch.testing.assert_close(found, expected)
            torch.testing.assert_close(linearization.vjp(v), cotangents)
            torch.testing.assert_close(adapter.dual(x, v), expected)
            value = adapter.evaluate(x, adapter.coefficients())
            torch.testing.assert_close(value, expected[0], rtol=0, atol=0)


@pytest.mark.parametrize("route", ["linearize", "dual"])
@pytest.mark.parametrize("name", MODULES)
def test_gradients_reach_input_tangents_and_parameters(name: str, route: str) -> None:
    net, x, v = module_and_point(name)
    x.requires_grad_()
    v.requires_grad_()
    adapter = AutogradNetwork(net)
    if route == "linearize":
        linearization = adapter.linearize(x)
        value, tangents = linearization.value, linearization.jvp(v)
    else:
        value, tangents = adapter.dual(x, v)
    inputs = [x, v, *net.parameters()]
    weights = [torch.randn_like(value), torch.randn_like(tangents)]
    torch.testing.assert_close(
        weighted_gradients((value, tangents), weights, inputs),
        weighted_gradients(reference_jvp(net, x, v), weights, inputs),
    )


@pytest.mark.parametrize("name", MODULES)
def test_parameters_receive_gradients_where_the_input_wants_none(name: str) -> None:
    net, x, v = module_and_point(name)
    inputs = list(net.parameters())
    outputs = AutogradNetwork(net).dual(x, v)
    weights = [torch.randn_like(output) for output in outputs]
    torch.testing.assert_close(
        weighted_gradients(outputs, weights, inputs),
        weighted_gradients(reference_jvp(net, x, v), weights, inputs),
    )


@pytest.mark.parametrize("name", MODULES)
def test_callers_tensor_is_left_alone(name: str) -> None:
    net, x, v = module_and_point(name)
    adapter = AutogradNetwork(net)
    linearization = adapter.linearize(x)
    linearization.vjp(v)
    linearization.jvp(v)
    adapter.dual(x, v)
    assert not x.requires_grad
    assert x.grad is None
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("learned", [False, True])
def test_network_that_ignores_its_input_has_no_tangents(learned: bool) -> None:
    net = Constant().requires_grad_(learned)
    x, v = torch.randn(4, 3), torch.randn(2, 4, 3)
    adapter = AutogradNetwork(net)
    value, tangents = adapter.dual(x, v)
    linearization = adapter.linearize(x)
    torch.testing.assert_close(value, net.value.expand(4, 3))
    for product in (tangents, linearization.vjp(v), linearization.jvp(v)):
        torch.testing.assert_close(product, torch.zeros(2, 4, 3), rtol=0, atol=0)


@pytest.mark.parametrize("name", MODULES)
def test_products_are_right_under_inference_mode(name: str) -> None:
    net, x, v = module_and_point(name)
    expected = AutogradNetwork(net).linearize(x)
    with torch.inference_mode():
        found = AutogradNetwork(net).linearize(1 * x)
        torch.testing.assert_close(found.value, expected.value)
        torch.testing.assert_close(found.vjp(v), expected.vjp(v))
        torch.testing.assert_close(found.jvp(v), expected.jvp(v))


@pytest.mark.parametrize("graph", [False, True], ids=["forward mode", "double backward"])
@pytest.mark.parametrize("name", MODULES)
def test_derivatives_of_value_and_tangents(name: str, graph: bool) -> None:
    net, x, v = module_and_point(name)
    x.requires_grad_()
    inputs = [x, *net.parameters()]
    weights = [torch.randn_like(x), torch.randn_like(v)]
    expected = weighted_gradients(reference_jvp(net, x, v), weights, inputs)
    with torch.no_grad():
        linearization = AutogradNetwork(net).linearize(x)
        if graph:
            linearization.vjp(v)
        needed = [True] * len(inputs)
        torch.testing.assert_close(linearization.dual_vjp(v, *weights, needed), expected)
        needed[0] = needed[-1] = False
        found = AutogradNetwork(net).linearize(x).dual_vjp(v, *weights, needed)
    torch.testing.assert_close(found[1:-1], expected[1:-1])
    assert found[0] is found[-1] is None


@pytest.mark.parametrize("make", [mlp, lambda: LipschitzMLP(3)])
def test_coefficients_decide_the_value(make: Callable[[], nn.Module]) -> None:
    net, other = as_linearizable(make()), as_linearizable(make())
    x, v = torch.randn(4, 3), torch.randn(2, 4, 3)
    bound = WithCoefficients(net, other.coefficients())
    expected = WithCoefficients(other, other.coefficients())
    torch.testing.assert_close(bound(x), expected(x), rtol=0, atol=0)
    torch.testing.assert_close(bound.linearize(x).jvp(v), expected.linearize(x).jvp(v))
    assert (bound(x) - WithCoefficients(net, net.coefficients())(x)).abs().max() > 1e-3


def test_coefficients_of_a_module_are_its_parameters() -> None:
    net = mlp()
    assert AutogradNetwork(net).coefficients() == tuple(net.parameters())


def test_only_networks_without_the_methods_are_wrapped() -> None:
    negative, plain = Negative(LipschitzMLP(3)), without_forward_mode()
    assert as_linearizable(negative) is negative
    wrapped = as_linearizable(plain)
    assert isinstance(wrapped, AutogradNetwork)
    assert wrapped.net is plain
    assert as_linearizable(wrapped) is wrapped


def test_a_network_that_overwrites_its_input_leaves_that_of_the_caller_alone() -> None:
    net = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 3))
    x = torch.tensor([[-1.0, 0.5, 2.0]])
    adapter = as_linearizable(net)
    assert isinstance(adapter, AutogradNetwork)
    expected = net(x.clone())
    torch.testing.assert_close(adapter(x), expected)
    torch.testing.assert_close(adapter.evaluate(x, list(net.parameters())), expected)
    torch.testing.assert_close(adapter.linearize(x).value, expected)
    assert x.tolist() == [[-1.0, 0.5, 2.0]]
    with torch.no_grad():
        torch.testing.assert_close(Residual(net)(x), x + expected)


def test_a_chain_is_bound_to_its_stages() -> None:
    chain, x = LipschitzMLP(3), torch.randn(4, 3)
    bound = as_linearizable(chain)
    assert isinstance(bound, BoundChain)
    assert as_linearizable(bound) is bound
    torch.testing.assert_close(bound(x), chain(x), rtol=0, atol=0)
    with torch.no_grad():
        chain[0].weight.mul_(0.5)  # which it follows: only the stages are fixed
    torch.testing.assert_close(bound(x), chain(x), rtol=0, atol=0)
    torch.testing.assert_close(bound.linearize(x).value, chain(x), rtol=0, atol=0)


@pytest.mark.parametrize("is_kept", [True, False])
def test_stages_are_built_once_for_an_estimate_and_its_gradient_and_once_for_a_solve(
    is_kept: bool,
) -> None:
    activation = LipSwish if is_kept else NotReusable
    block = Residual(LipschitzMLP(3, [8], activation=activation), logdet=Krylov())
    x = torch.randn(4, 3)
    with mock.patch.object(Chain, "stages", autospec=True, side_effect=Chain.stages) as built:
        block.call_and_ladj(x)[1].sum().backward()
        assert built.call_count == 1
        block._call(x)
        assert built.call_count == (1 if is_kept else 2)
        block._inverse(x).sum().backward()
        assert built.call_count == (1 if is_kept else 3)


class NotReusable(LipSwish):
    """An activation whose stages are not marked as reusable."""

    def stages(self):  # type: ignore[no-untyped-def]
        return super().stages()


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_linearizable(name: str) -> None:
    net, _ = NETWORKS[name](0.9)
    assert isinstance(as_linearizable(net), Linearizable)


def test_gradients_are_taken_where_needed() -> None:
    a, b, unused = (torch.randn(3, requires_grad=True) for _ in range(3))
    weight = torch.randn(3)
    outputs = [a * b, 2 * a]
    found = gradients_where_needed(outputs, [weight, weight], [a, b, unused], [True, False, True])
    torch.testing.assert_close(found[0], weight * (b + 2))
    assert found[1:] == [None, None]
    assert gradients_where_needed(outputs, [weight, weight], [a, b], [False, False]) == [None] * 2


@pytest.mark.parametrize(
    ("net", "event_dim", "expected"),
    [
        (nn.Tanh(), None, 1),
        (nn.Tanh(), 3, 3),
        (LipschitzMLP(3), None, 1),
        (LipschitzMLP(3), 2, 2),
        (NETWORKS["conv_net"](0.9)[0], None, 3),
    ],
)
def test_event_dim_is_as_given_else_the_networks_else_one(net, event_dim, expected) -> None:
    assert resolve_event_dim(net, event_dim) == expected


@pytest.mark.parametrize("event_dim", [0, -1, 1.0, "1"])
def test_event_dim_that_is_no_positive_integer_is_refused(event_dim) -> None:
    with pytest.raises(ValueError, match="event_dim"):
        resolve_event_dim(nn.Tanh(), event_dim)


@pytest.mark.parametrize("batch_shape", [(), (3,), (3, 4), (0,), (2, 0)])
@pytest.mark.parametrize("event_shape", [(5,), (2, 3, 3)])
def test_batch_is_flattened_and_restored(batch_shape, event_shape) -> None:
    x = torch.randn(*batch_shape, *event_shape)
    flat, found = flatten_batch(x, len(event_shape))
    assert found == batch_shape
    assert flat.shape == (torch.Size(batch_shape).numel(), *event_shape)
    torch.testing.assert_close(flat.reshape(x.shape), x, rtol=0, atol=0)


def test_tensor_with_too_few_dimensions_is_refused() -> None:
    with pytest.raises(ValueError, match=r"x: .*event_dim=3.*\(2, 3\)"):
        flatten_batch(torch.randn(2, 3), 3)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_negative_network_has_negative_values_and_products(name: str) -> None:
    net, event_shape = NETWORKS[name](0.9)
    network = as_linearizable(net.double())
    negative = Negative(network)
    x = torch.randn(3, *event_shape, dtype=torch.float64)
    v, w = torch.randn(2, 2, *x.shape, dtype=torch.float64)
    torch.testing.assert_close(negative(x), -network(x))
    torch.testing.assert_close(negative.evaluate(x, network.coefficients()), -network(x))
    ours, theirs = negative.linearize(x), network.linearize(x)
    torch.testing.assert_close(ours.value, -theirs.value)
    torch.testing.assert_close((ours.vjp(w), ours.jvp(v)), (-theirs.vjp(w), -theirs.jvp(v)))
    needed = [True] * (1 + len(network.coefficients()))
    cotangent = torch.randn_like(x)
    with torch.no_grad():
        found = negative.linearize(x).dual_vjp(v, cotangent, w, needed)
        expected = network.linearize(x).dual_vjp(v, cotangent, w, needed)
    for gradient, positive in zip(found, expected, strict=True):
        if positive is not None:
            torch.testing.assert_close(gradient, -positive)
