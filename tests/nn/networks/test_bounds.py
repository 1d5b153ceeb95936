"""Lipschitz constants of networks, and their certified bounds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pyro_resflow.nn import (
    Chain,
    CLipSwish,
    DenseConcatenation,
    InducedNorm,
    LipschitzConvNet,
    LipschitzDenseNet,
    LipschitzLayer,
    LipschitzLinear,
    LipschitzMLP,
    LipSwish,
    SpectralNorm,
    Tanh,
    check_contraction,
)
from pyro_resflow.nn.stages import Scale, Stage
from tests.derivatives import jacobian
from tests.networks import IMAGE, NETWORKS, activate_constraints
from tests.nn.networks.variants import CHAINS, VARIANTS, settled


@pytest.mark.parametrize("lipschitz", [0.5, 0.97])
@pytest.mark.parametrize("name", NETWORKS)
def test_lipschitz_constant_is_never_exceeded(name: str, lipschitz: float) -> None:
    net, event_shape = NETWORKS[name](lipschitz)
    net.double()
    x, y = torch.randn(2, 100, *event_shape, dtype=torch.float64)
    with torch.no_grad():
        far = distance(net(x), net(y)) / distance(x, y)
        near = distance(net(x), net(x + 1e-4 * y)) / distance(x, x + 1e-4 * y)
    largest_slope = torch.linalg.matrix_norm(jacobian(net, x), 2).max()
    # parallel differences and Jacobians see the same constant, down to the float32 start
    assert max(far.max(), near.max(), largest_slope) <= lipschitz * (1 + 1e-6)
    assert largest_slope > 0.3 * lipschitz  # else the networks would be no test of the bound


def distance(x: Tensor, y: Tensor) -> Tensor:
    return torch.linalg.vector_norm((x - y).flatten(1), dim=1)


@pytest.mark.parametrize("lipschitz", [0.5, 0.97])
@pytest.mark.parametrize("name", CHAINS)
def test_certified_bound_is_the_constant_that_the_layers_allow(
    name: str, lipschitz: float
) -> None:
    net, event_shape = NETWORKS[name](lipschitz)
    x = torch.randn(50, *event_shape, dtype=torch.float64)
    bound = net.double().lipschitz_bound()
    assert bound >= torch.linalg.matrix_norm(jacobian(net, x), 2).max()
    # 32 singular values leave ten Gram steps a factor of at most 32^(1/2048) = 1.002 a layer
    assert lipschitz * (1 - 1e-6) <= bound.item() <= lipschitz * 1.002**3


@pytest.mark.parametrize("variant", [v for v in VARIANTS if "induced" not in v])
def test_certified_bound_holds_with_every_activation(variant: str) -> None:
    net, event_shape = VARIANTS[variant]()
    settled(net)
    x = 2 * torch.randn(50, *event_shape, dtype=torch.float64)
    largest_slope = torch.linalg.matrix_norm(jacobian(net, x), 2).max()
    assert largest_slope <= net.lipschitz_bound() * (1 + 1e-12)  # of a linear net, it is equal
    assert net.lipschitz_bound() < 1


def test_induced_norms_bound_the_network_in_the_first_norm() -> None:
    net, order = LipschitzMLP(3, [6, 4], norm=InducedNorm.chain(3, order=3.0)), 3.0
    settled(net)
    x = torch.randn(50, 3, dtype=torch.float64)
    v = torch.randn(400, 50, 3, dtype=torch.float64)
    images = net.linearize(x).jvp(v)
    stretch = torch.linalg.vector_norm(images, order, dim=-1)
    stretch = stretch / torch.linalg.vector_norm(v, order, dim=-1)
    assert stretch.max() <= net.lipschitz_bound()


def understate(layer: LipschitzLayer, factor: float) -> None:
    """Make the layer's norm as if an iteration had found a fraction of it."""
    layer.u.div_(factor)
    layer.norm_state.measured = None


def test_bound_counts_nested_chains() -> None:
    inner = Chain([LipschitzLinear(3, 3, SpectralNorm(0.5)), Tanh()])
    net = Chain([inner, LipschitzLinear(3, 3, SpectralNorm(0.5))])
    activate_constraints(net, bias=0.0)
    assert net.lipschitz_bound().item() == pytest.approx(0.25, rel=1e-2)
    understate(inner[0], 10)
    assert net.lipschitz_bound().item() == pytest.approx(2.5, rel=1e-2)


def test_dense_concatenation_is_a_contraction_for_any_learned_weights() -> None:
    layer = DenseConcatenation(Chain([LipschitzLinear(3, 4, SpectralNorm(0.9)), Tanh()])).double()
    activate_constraints(layer, bias=0.0)
    x = torch.randn(50, 3, dtype=torch.float64)
    for raw in (-20.0, 0.0, 20.0):
        with torch.no_grad():
            layer.raw_weights[0] = raw
        assert torch.linalg.vector_norm(layer.weights()).item() == pytest.approx(1)
        assert layer.lipschitz_bound() < 1
        largest_slope = torch.linalg.matrix_norm(jacobian(layer, x), 2).max()
        assert largest_slope <= layer.lipschitz_bound()


@pytest.mark.parametrize(
    "make",
    [
        lambda: LipschitzMLP(2),
        lambda: LipschitzMLP(20, [128, 128]),
        lambda: LipschitzMLP(8, [32], activation=CLipSwish),
        lambda: LipschitzConvNet((3, 8, 8), [16, 16]),
        lambda: LipschitzConvNet((1, 12, 12), [8], kernel_sizes=[5, 3]),
        lambda: LipschitzDenseNet(6),
        lambda: LipschitzDenseNet((3, 6, 6), depth=2, growth=8),
        lambda: LipschitzMLP(3, [16, 16], norm=InducedNorm.chain(3)),
    ],
)
@pytest.mark.parametrize("raise_weights", [False, True])
def test_fresh_networks_are_certified(make: Callable[[], Chain], raise_weights: bool) -> None:
    net = make()
    if raise_weights:
        activate_constraints(net, bias=0.0)
    check_contraction(net)
    check_contraction(nn.ModuleList([net, nn.Linear(2, 2)]))


def test_nothing_is_certified_of_a_module_without_our_networks() -> None:
    with pytest.raises(ValueError, match="module"):
        check_contraction(nn.Sequential(nn.Linear(2, 2), nn.Tanh()))


def test_orthogonal_weights_are_certified() -> None:
    net = LipschitzMLP(64, [64, 64])  # all singular values at the coefficient: the worst case
    for layer in net:
        if isinstance(layer, LipschitzLinear):
            nn.init.orthogonal_(layer.weight, gain=3)
    check_contraction(net)


@pytest.mark.parametrize(
    ("make", "broken"),
    [
        (lambda: LipschitzMLP(3, [8, 8]), "2"),
        (lambda: LipschitzConvNet(IMAGE, [4, 4]), "3"),
        (lambda: LipschitzDenseNet(3, depth=2, growth=4), "1.branch.0"),
        (lambda: LipschitzDenseNet(IMAGE, depth=2, growth=4), "2"),
    ],
)
@pytest.mark.parametrize("path", ["", "flow.0"])
def test_check_names_the_layer_that_exceeds_its_coefficient(
    make: Callable[[], Chain], broken: str, path: str
) -> None:
    net = activate_constraints(make(), bias=0.0)
    module = nn.ModuleDict({"flow": nn.ModuleList([net])}) if path else net
    check_contraction(module)
    understate(net.get_submodule(broken), 3)
    name = f"{path}.{broken}" if path else broken
    with pytest.raises(ValueError, match=rf"'{name}', with 2\.9"):
        check_contraction(module)


class Tripled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * x

    def stages(self) -> list[Stage]:
        return [Scale(lambda: 3.0)]


class TripledAndSaid(Tripled):
    def lipschitz_bound(self) -> float:
        return 3.0


def test_a_layer_of_ones_own_counts_with_what_it_says() -> None:
    first, last = LipschitzLinear(2, 8), LipschitzLinear(8, 2)
    with torch.no_grad():
        for layer in (first, last):
            layer.weight.mul_(100)
    network = Chain([first, TripledAndSaid(), last])
    expected = 3 * Chain([first, LipSwish(), last]).lipschitz_bound()
    torch.testing.assert_close(network.lipschitz_bound(), expected)
    with pytest.raises(ValueError, match=r"certified to at most 2\.\d+ only"):
        check_contraction(network)
    with pytest.raises(ValueError, match=r"layer 1 \(Tripled\): its Lipschitz constant"):
        Chain([first, Tripled(), last]).lipschitz_bound()


def test_induced_norms_that_do_not_chain_bound_nothing() -> None:
    norms = [InducedNorm(1.1, 10.0), InducedNorm(1.1, 10.0)]
    network = Chain([LipschitzLinear(2, 8, norms[0]), LipschitzLinear(8, 2, norms[1])])
    with pytest.raises(ValueError, match="orders are shared by neighbouring layers"):
        network.lipschitz_bound()


def test_a_chain_without_linear_layers_is_bounded_by_its_activations() -> None:
    assert Chain([LipSwish()]).lipschitz_bound() == 1
