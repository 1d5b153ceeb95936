"""Subclasses of networks and layers that override some of the methods that evaluate them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pyro_resflow.linearization import AutogradNetwork, as_linearizable
from pyro_resflow.logdet import Exact
from pyro_resflow.nn import (
    Chain,
    ConditionalChain,
    DenseConcatenation,
    GatedLipschitzMLP,
    LipschitzConvNet,
    LipschitzDenseNet,
    LipschitzLinear,
    LipschitzMLP,
    LipSwish,
    Tanh,
)
from pyro_resflow.transforms import Compose, Residual


def halved(base: type[nn.Module]) -> type[nn.Module]:
    """A subclass whose ``forward`` alone differs."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return base.forward(self, x) / 2

    return type(f"Halved{base.__name__}", (base,), {"forward": forward})


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "chain": lambda: halved(Chain)([LipschitzLinear(3, 4), LipSwish(), LipschitzLinear(4, 3)]),
    "perceptron": lambda: halved(LipschitzMLP)(3, [4]),
    "gated": lambda: halved(GatedLipschitzMLP)(3, [4]),
    "dense": lambda: halved(LipschitzDenseNet)(3, depth=1, growth=4),
    "images": lambda: halved(LipschitzConvNet)((1, 2, 2), [3, 2]),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_forward_of_ones_own_is_the_function_of_both_directions(name: str) -> None:
    net = NETWORKS[name]().double()
    event = (1, 2, 2) if name == "images" else (3,)
    flow = Compose([Residual(net, logdet=Exact()) for _ in range(2)])
    x = torch.randn(5, *event, dtype=torch.float64)
    expected = x + net(x)
    expected = expected + net(expected)
    with torch.no_grad():
        torch.testing.assert_close(flow._call(x), expected)
        torch.testing.assert_close(flow._inverse(expected), x)
    y, ladj = flow.call_and_ladj(x)
    torch.testing.assert_close(y, expected)
    for i in range(2):
        jacobian = torch.autograd.functional.jacobian(flow._call, x[i : i + 1]).reshape(
            x[0].numel(), -1
        )
        torch.testing.assert_close(ladj[i], torch.linalg.slogdet(jacobian)[1])
    ladj.sum().backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


def test_a_network_that_linearizes_its_own_forward_does_so() -> None:
    class Own(LipschitzMLP):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

        def linearize(self, x, coefficients=None):
            return super().linearize(x, coefficients)

    class Below(Own):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    net = Own(3)
    assert as_linearizable(net) is net
    assert isinstance(as_linearizable(Below(3)), AutogradNetwork)


LAYERS: dict[str, Callable[[], object]] = {
    "layer": lambda: Chain([halved(LipschitzLinear)(3, 3)]),
    "activation": lambda: Chain([LipschitzLinear(3, 3), halved(LipSwish)()]),
    "activation of a network": lambda: LipschitzMLP(3, [4], activation=halved(Tanh)),
    "nested": lambda: Chain([halved(Chain)([LipschitzLinear(3, 3)])]),
    "branch": lambda: DenseConcatenation(halved(Chain)([LipschitzLinear(3, 3)])),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_whose_forward_would_not_be_called_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"got a Halved\w+, which overrides forward alone"):
        LAYERS[name]()


def test_an_activation_by_its_core_is_taken_with_or_without_a_forward() -> None:
    class Half(Tanh):
        def core(self, h: Tensor) -> Tensor:
            return super().core(h) / 2

        def core_slope(self, h: Tensor) -> Tensor:
            return super().core_slope(h) / 2

        def core_curvature(self, h: Tensor) -> Tensor:
            return super().core_curvature(h) / 2

    class Fused(Half):
        def core(self, h: Tensor) -> Tensor:
            return torch.tanh(h) / 2

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x) / 2

    x = torch.randn(3, 3)
    for activation in (Half(), Fused()):
        torch.testing.assert_close(Chain([activation])(x), torch.tanh(x) / 2)


def test_a_layer_that_comes_later_is_refused_by_the_next_pass() -> None:
    replaced, longer = (Chain([LipschitzLinear(3, 3), LipSwish()]) for _ in range(2))
    x = torch.randn(2, 3)
    replaced(x), longer(x)
    replaced[1] = halved(LipSwish)()
    longer.append(halved(LipSwish)())
    for chain in (replaced, longer):
        with pytest.raises(ValueError, match=r"got a HalvedLipSwish"):
            chain(x)


def test_a_concatenation_of_ones_own_keeps_its_modules_with_another_branch() -> None:
    class Weighted(DenseConcatenation):
        def __init__(self, branch: Chain) -> None:
            super().__init__(branch)
            self.extra = nn.Linear(1, 1)

        def weights(self) -> Tensor:
            return super().weights() * self.extra.weight.tanh().reshape(())

    chain = Chain([Weighted(Chain([LipschitzLinear(3, 4), LipSwish()])), LipschitzLinear(7, 3)])
    net, context, x = ConditionalChain(chain, 2), torch.randn(5, 2), torch.randn(5, 3)
    shifts = net.shifts(context).split([4, 3], dim=1)
    dense, last = chain
    linear, phi = dense.branch
    eta = dense.weights()
    features = torch.cat([eta[0] * x, eta[1] * phi(linear(x) + shifts[0])], dim=1)
    torch.testing.assert_close(net.bind(context)(x), last(features) + shifts[1])


def test_a_chain_that_evaluates_itself_cannot_be_shifted() -> None:
    with pytest.raises(ValueError, match=r"chain: expected a chain .* got a HalvedLipschitzMLP"):
        ConditionalChain(halved(LipschitzMLP)(3), 5)
