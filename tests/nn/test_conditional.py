from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyro_resflow.linearization import AutogradNetwork
from pyro_resflow.nn import (
    Activation,
    Chain,
    CLipSwish,
    ConditionalChain,
    ConditionalGatedLipschitzMLP,
    ConditionalLipschitzMLP,
    GatedLipschitzMLP,
    InducedNorm,
    LipschitzConvNet,
    LipschitzDenseNet,
    LipschitzLinear,
    LipSwish,
    Tanh,
    check_contraction,
)
from pyro_resflow.nn.networks.chain import BoundChain, prepared_together
from pyro_resflow.nn.networks.gated import BoundGate
from pyro_resflow.nn.stages import Scale, Stage
from pyro_resflow.solvers import Anderson
from pyro_resflow.transforms import ConditionalCompose, ConditionalResidual
from tests.derivatives import check_gradients, jacobian, weighted_gradients
from tests.networks import activate_constraints, converged_norm

ACTIVATIONS: list[Callable[[], Activation]] = [LipSwish, Tanh, CLipSwish]


def conditional_net(activation: Callable[[], Activation] = LipSwish) -> ConditionalLipschitzMLP:
    norm = converged_norm(0.97 ** (1 / 3))
    net = ConditionalLipschitzMLP(3, 5, [6, 4], activation=activation, norm=norm).double()
    return activate_constraints(net, bias=0.5)


def contexts(batch: int) -> Tensor:
    return torch.randn(batch, 5, dtype=torch.float64)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bound_network_is_a_chain_of_shifted_layers(activation) -> None:
    net = conditional_net(activation)
    context, x = contexts(7), torch.randn(7, 3, dtype=torch.float64)
    shifts = net.shifts(context).split([6, 4, 3], dim=-1)
    first, phi, second, psi, last = net.chain
    expected = phi(first(x) + shifts[0])
    expected = psi(second(expected) + shifts[1])
    expected = last(expected) + shifts[2]
    torch.testing.assert_close(net.bind(context)(x), expected)


def gated_net() -> ConditionalGatedLipschitzMLP:
    net = ConditionalGatedLipschitzMLP(3, 5, [6, 4]).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2)  # rows above their bounds
    return net


def test_a_gated_network_is_shifted_in_its_branch() -> None:
    net = gated_net()
    context, x = contexts(7), torch.randn(7, 3, dtype=torch.float64)
    shifts = net.shifts(context).split([6, 4, 6], dim=-1)
    first, phi, second, psi, last = net.chain.branch
    hidden = phi(first(x) + shifts[0])
    hidden = psi(second(hidden) + shifts[1])
    n, m = (last(hidden) + shifts[2]).chunk(2, dim=-1)
    amplitude, share = net.chain.gate_coefficients()
    expected = amplitude * 3 * torch.tanh(x / 3) * torch.tanh(n / 3) + share * m
    torch.testing.assert_close(net.bind(context)(x), expected)
    assert net.chain.branch[1] is phi  # the network itself stays as it was
    assert len(net.chain.branch) == 5


@pytest.mark.parametrize("size", [0.0, 1.0, 1e3])
def test_a_gated_network_is_a_contraction_in_x_whatever_the_context(size: float) -> None:
    net = gated_net()
    x = torch.randn(50, 3, dtype=torch.float64)
    slopes = torch.linalg.matrix_norm(jacobian(net.bind(size * contexts(50)), x), torch.inf)
    assert slopes.max() <= 0.98
    check_contraction(net)


@pytest.mark.parametrize("make", [*(partial(conditional_net, a) for a in ACTIVATIONS), gated_net])
def test_bound_network_linearizes_as_autograd_does(make: Callable[[], ConditionalChain]) -> None:
    net = make()
    context = contexts(7).requires_grad_()
    x = torch.randn(7, 3, dtype=torch.float64).requires_grad_()
    v = torch.randn(2, 7, 3, dtype=torch.float64)
    bound = net.bind(context)
    found = bound.linearize(x)
    value = found.value
    expected = AutogradNetwork(bound).linearize(x)
    torch.testing.assert_close(
        (value, found.vjp(v), found.jvp(v)), (expected.value, expected.vjp(v), expected.jvp(v))
    )
    torch.testing.assert_close(bound.dual(x, v), (expected.value, expected.jvp(v)))
    inputs = [x, context, *net.parameters()]
    weights = [torch.randn_like(value), torch.randn_like(v)]
    torch.testing.assert_close(
        weighted_gradients(bound.dual(x, v), weights, inputs),
        weighted_gradients((expected.value, expected.jvp(v)), weights, inputs),
    )


def test_context_and_all_parameters_receive_gradients() -> None:
    net = conditional_net()
    context = contexts(7).requires_grad_()
    x = torch.randn(7, 3, dtype=torch.float64)
    inputs = [context, *net.parameters()]
    gradients = torch.autograd.grad(net.bind(context)(x).square().sum(), inputs)
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_shifts_are_among_the_coefficients() -> None:
    coefficients = conditional_net().bind(contexts(7)).coefficients()
    assert [tuple(c.shape) for c in coefficients if c.shape[0] == 7] == [(7, 6), (7, 4), (7, 3)]


def image_of_convolutions() -> ConditionalChain:
    return ConditionalChain(LipschitzConvNet((1, 4, 4), [3, 2]), 5).double()


def image_of_dense_blocks() -> ConditionalChain:
    return ConditionalChain(LipschitzDenseNet(3, growth=4, depth=2), 5).double()


def without_biases() -> ConditionalLipschitzMLP:
    net = conditional_net()
    for layer in net.chain:
        if isinstance(layer, LipschitzLinear):
            layer.bias = None
    return net


BOUND: dict[str, Callable[[], ConditionalChain]] = {
    "perceptron": conditional_net,
    "scaled at its start": partial(conditional_net, CLipSwish),
    "without biases": without_biases,
    "gated": gated_net,
    "convolutions": image_of_convolutions,
    "dense": image_of_dense_blocks,
}


@pytest.mark.parametrize("inside_a_pass", [False, True])
@pytest.mark.parametrize("name", BOUND)
def test_the_network_of_one_pass_is_the_bound_network(name: str, inside_a_pass: bool) -> None:
    net = BOUND[name]()
    block = ConditionalResidual(net)
    flow = nn.ModuleList([block, ConditionalResidual(BOUND[name]())])
    context = contexts(7).requires_grad_()
    shape = net.event_shape if net.event_dim == 3 else (3,)
    x = torch.randn(7, *shape, dtype=torch.float64)
    inputs = [context, *(each for each in net.parameters() if each.requires_grad)]
    expected = net.bind(context)(x)
    with prepared_together(flow) if inside_a_pass else nullcontext():
        found = net.bound_at(context)
        value = found(x)
        is_prepared = isinstance(found, BoundChain | BoundGate)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(
        torch.autograd.grad(value.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
    )
    assert is_prepared == (name != "dense")


class HalvedLinear(LipschitzLinear):
    def stages(self) -> list[Stage[Any]]:
        return [*super().stages(), Scale(lambda: 0.5)]


class ReversedChain(Chain):
    def stages(self) -> list[Stage[Any]]:
        return [*super().stages(), Scale(lambda: -1.0)]


class LargerGate(GatedLipschitzMLP):
    def with_branch(self, branch: Chain) -> GatedLipschitzMLP:
        other = super().with_branch(branch)
        other.reach = 2 * self.reach
        return other


class HalvedGate(GatedLipschitzMLP):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


OTHERS: dict[str, Callable[[], Chain | GatedLipschitzMLP]] = {
    "nested": lambda: Chain([Chain([LipschitzLinear(3, 4), LipSwish()]), LipschitzLinear(4, 3)]),
    "scaled layer": lambda: Chain([HalvedLinear(3, 3), LipSwish(), LipschitzLinear(3, 3)]),
    "reversed chain": lambda: ReversedChain([LipschitzLinear(3, 3)]),
    "gate with another branch": lambda: LargerGate(3, [4]),
}


@pytest.mark.parametrize("name", OTHERS)
def test_chains_of_ones_own_are_bound_as_they_say(name: str) -> None:
    net = ConditionalChain(OTHERS[name](), 5)
    flow = ConditionalCompose([ConditionalResidual(net), ConditionalResidual(conditional_net())])
    flow = flow.double()
    context, x = contexts(7), torch.randn(7, 3, dtype=torch.float64)
    assert isinstance(net.bound_at(context), Chain | GatedLipschitzMLP)
    first, second = flow.condition(context).parts
    expected = x + net.bind(context)(x)
    torch.testing.assert_close(first(x), expected)
    torch.testing.assert_close(flow.condition(context)(x), second(expected))


def test_a_gate_that_evaluates_itself_is_called() -> None:
    net = ConditionalChain(HalvedGate(3, [4]), 5).double()
    context, x = contexts(7), torch.randn(7, 3, dtype=torch.float64)
    found = ConditionalResidual(net).condition(context)._call(x)
    torch.testing.assert_close(found, x + net.bind(context)(x))


def test_a_bind_given_to_the_network_itself_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    net, other = conditional_net(), conditional_net()
    monkeypatch.setattr(net, "bind", other.bind)
    context, x = contexts(7), torch.randn(7, 3, dtype=torch.float64)
    found = ConditionalResidual(net).condition(context)(x)
    torch.testing.assert_close(found, x + other.bind(context)(x))


def test_a_hook_on_the_chain_is_refused() -> None:
    net = conditional_net()
    net.chain.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="expected no hooks, got some"):
        ConditionalResidual(net).condition(contexts(7))(torch.randn(7, 3, dtype=torch.float64))


@pytest.mark.parametrize("name", BOUND)
def test_functional_call_uses_the_tensors_given(name: str) -> None:
    block, other = (ConditionalResidual(BOUND[name]()) for _ in range(2))
    given = {f"net.{name}": p.detach() for name, p in other.net.named_parameters()}
    shape = block.net.event_shape if block.net.event_dim == 3 else (3,)
    context, x = contexts(7), torch.randn(7, *shape, dtype=torch.float64)

    class Value(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = block.net

        def forward(self) -> Tensor:
            return block.condition(context).call_and_ladj(x)[0]

    before = block.condition(context)(x)
    found = torch.func.functional_call(Value(), given, ())
    torch.testing.assert_close(found, other.condition(context)(x))
    torch.testing.assert_close(block.condition(context)(x), before)


@pytest.mark.parametrize("size", [0.0, 1.0, 1e3])
def test_contraction_in_x_whatever_the_context(size: float) -> None:
    net = conditional_net()
    x = torch.randn(50, 3, dtype=torch.float64)
    bound = net.bind(size * contexts(50))
    largest_slope = torch.linalg.matrix_norm(jacobian(bound, x), 2).max()
    assert largest_slope <= bound.lipschitz_bound() < 0.98
    check_contraction(bound)
    check_contraction(net)


def test_context_matters_without_bound() -> None:
    net = conditional_net()
    x = torch.randn(1, 3, dtype=torch.float64)
    context = contexts(1)
    near, far = net.bind(context)(x), net.bind(1e3 * context)(x)
    assert (far - near).abs().max() > 10  # no contraction in the context


@pytest.mark.parametrize("wanted", ["context", "hyper-network", "chain"])
def test_gradients_through_the_inverse_are_those_of_finite_differences(wanted: str) -> None:
    net = conditional_net()
    context = contexts(4).requires_grad_()
    y = torch.randn(4, 3, dtype=torch.float64)
    direction = torch.randn_like(y)
    tensor = {
        "context": context,
        "hyper-network": net.shifts[0].weight,
        "chain": net.chain[2].weight,
    }[wanted]

    def value() -> Tensor:
        return (Anderson(tolerance=1e-13)(net.bind(context), y) * direction).sum()

    check_gradients(value, [tensor], rtol=1e-6, atol=1e-7)


def test_norms_and_widths_are_passed_on() -> None:
    norms = InducedNorm.chain(2, order=3.0)
    net = ConditionalLipschitzMLP(3, 2, [8], context_hidden_dims=[], norm=norms)
    assert [layer.norm for layer in net.chain if hasattr(layer, "norm")] == norms
    assert [tuple(p.shape) for p in net.shifts.parameters()] == [(11, 2), (11,)]
    assert (net.input_dim, net.context_dim, net.event_dim) == (3, 2, 1)


IMAGE_NETS: dict[str, Callable[[], Chain]] = {
    "conv": lambda: LipschitzConvNet((2, 3, 3), [4, 4], norm=converged_norm(0.97)),
    "dense": lambda: LipschitzDenseNet(
        (2, 3, 3), depth=2, growth=4, stem=3, norm=converged_norm(0.97)
    ),
}


@pytest.fixture(params=sorted(IMAGE_NETS))
def image_net(request: pytest.FixtureRequest) -> ConditionalChain:
    torch.manual_seed(0)
    net = ConditionalChain(IMAGE_NETS[request.param](), 5, context_hidden_dims=[6]).double()
    return activate_constraints(net, bias=0.5)


def test_a_shift_of_images_is_a_bias_of_each_channel(image_net: ConditionalChain) -> None:
    """A context that shifts like other biases gives the same network as these biases."""
    context, x = contexts(1), torch.randn(3, 2, 3, 3, dtype=torch.float64)
    bound = image_net.bind(context.expand(3, 5))
    value, constant = bound(x), bound.lipschitz_bound()
    layers = [m for m in image_net.chain.modules() if hasattr(m, "effective_weight")]
    shifts = image_net.shifts(context)[0].split(image_net.shift_sizes)
    with torch.no_grad():
        for layer, shift in zip(layers, shifts, strict=True):
            layer.bias.add_(shift)
    torch.testing.assert_close(image_net.chain(x), value)
    torch.testing.assert_close(image_net.chain.lipschitz_bound(), constant)
    assert constant < 1


def test_bound_networks_of_images_linearize_as_autograd_does(image_net: ConditionalChain) -> None:
    context = contexts(3).requires_grad_()
    x = torch.randn(3, 2, 3, 3, dtype=torch.float64).requires_grad_()
    v = torch.randn(2, 3, 2, 3, 3, dtype=torch.float64)
    bound = image_net.bind(context)
    found, expected = bound.linearize(x), AutogradNetwork(bound).linearize(x)
    torch.testing.assert_close(
        (found.value, found.vjp(v), found.jvp(v)),
        (expected.value, expected.vjp(v), expected.jvp(v)),
    )
    inputs = [x, context, *image_net.parameters()]
    weights = [torch.randn_like(found.value), torch.randn_like(v)]
    torch.testing.assert_close(
        weighted_gradients(bound.dual(x, v), weights, inputs),
        weighted_gradients((expected.value, expected.jvp(v)), weights, inputs),
    )


def test_the_analytic_gradient_of_a_shift_of_images_is_summed_over_pixels(
    image_net: ConditionalChain,
) -> None:
    """The estimators' own backward pass gives the gradients that autograd gives."""
    context = contexts(3).requires_grad_()
    x = torch.randn(3, 2, 3, 3, dtype=torch.float64).requires_grad_()
    v = torch.randn(1, 3, 2, 3, 3, dtype=torch.float64)
    inputs = [x, context, *image_net.parameters()]
    bound = image_net.bind(context)
    value, tangent = bound.dual(x, v)
    of_value, of_tangent = torch.randn_like(value), torch.randn_like(tangent)
    coefficients = bound.coefficients()
    with torch.no_grad():
        detached = [c.detach() for c in coefficients]
        gradients = bound.linearize(x.detach(), detached).dual_vjp(
            v, of_value, of_tangent, [True] * (1 + len(coefficients))
        )
    expected = torch.autograd.grad(
        (value * of_value).sum() + (tangent * of_tangent).sum(), inputs, retain_graph=True
    )
    found = torch.autograd.grad([x, *coefficients], inputs, gradients)
    torch.testing.assert_close(found, expected)


def test_a_chain_without_lipschitz_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="chain: expected a LipschitzLinear"):
        ConditionalChain(Chain([Tanh()]), 3)
