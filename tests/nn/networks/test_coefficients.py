"""Coefficients that are computed together, for all chains of a flow, are those of each chain."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pyro_resflow import residual_flow
from pyro_resflow.logdet import Exact
from pyro_resflow.nn import (
    ELU,
    Chain,
    CLipSwish,
    GatedLipschitzMLP,
    InducedNorm,
    InfinityNormLinear,
    LipschitzDenseNet,
    LipschitzLinear,
    LipschitzMLP,
    LipSwish,
    update_norms,
)
from pyro_resflow.nn.lipschitz.operators import MatrixOperator
from pyro_resflow.nn.networks import chain as chains
from pyro_resflow.nn.networks.chain import prepared_together
from pyro_resflow.nn.networks.coefficients import coefficients_of
from pyro_resflow.nn.stages import Affine
from pyro_resflow.transforms import Compose, Residual
from tests.versions import torch_is


def networks() -> list[Chain]:
    found = [
        LipschitzMLP(3, [5, 4]),
        LipschitzMLP(3, [6], activation=ELU),
        LipschitzMLP(3, [6], activation=CLipSwish),
        LipschitzDenseNet(3, depth=1, growth=4),
        LipschitzMLP(3, [6], norm=InducedNorm.chain(2)),
    ]
    for net in found:
        net.double()
        update_norms(net)
    return found


def test_spectral_and_infinity_norms_beside_each_other() -> None:
    bounded = [
        Chain([InfinityNormLinear(3, 3), ELU(), InfinityNormLinear(3, 3)]) for _ in range(2)
    ]
    nets = [*bounded, LipschitzMLP(3, [5])]
    found = coefficients_of([net.stages() for net in nets])
    assert found[0][0]._base is found[1][2]._base is not None  # computed together
    torch.testing.assert_close(found, [net.coefficients() for net in nets])


@pytest.mark.parametrize("number", [4, 5])  # of the fifth, no coefficient is computed together
def test_coefficients_and_gradients_are_those_of_each_chain(number: int) -> None:
    nets = networks()[:number]
    parameters = [p for net in nets for p in net.parameters()]

    def value_and_gradients(found: list[tuple[Tensor, ...]]) -> tuple[object, ...]:
        loss = sum(tensor.sin().sum() for tensors in found for tensor in tensors)
        return found, torch.autograd.grad(loss, parameters, allow_unused=True)

    together = value_and_gradients(coefficients_of([net.stages() for net in nets]))
    alone = value_and_gradients([net.coefficients() for net in nets])
    torch.testing.assert_close(together, alone)


def test_gains_of_several_activations_are_those_of_each() -> None:
    swishes = [LipSwish() for _ in range(3)]
    for i, swish in enumerate(swishes):
        swish.raw_beta.data.fill_(i - 1.0)
    found = LipSwish.gains_together(swishes)
    for swish in swishes:
        torch.testing.assert_close(found[swish.input_gain], swish.input_gain())
        torch.testing.assert_close(found[swish.output_gain], swish.output_gain())


NETWORKS = LipschitzMLP, GatedLipschitzMLP


def blocks(count: int = 3, network: type[nn.Module] = LipschitzMLP) -> Compose:
    return Compose([Residual(network(3, [5, 4]), logdet=Exact()) for _ in range(count)])


@pytest.mark.parametrize("network", NETWORKS)
def test_a_composition_computes_what_its_blocks_compute_alone(network: type[nn.Module]) -> None:
    flow, x = blocks(network=network).double(), torch.randn(7, 3, dtype=torch.float64)

    def alone() -> tuple[Tensor, Tensor]:
        y, total = x, torch.zeros(7, dtype=torch.float64)
        for block in flow.parts:
            y, ladj = block.call_and_ladj(y)
            total = total + ladj
        return y, total

    def with_gradients(pair: tuple[Tensor, Tensor]) -> tuple[object, ...]:
        loss = pair[0].sin().sum() + pair[1].sum()
        return pair, torch.autograd.grad(loss, list(flow.parameters()))

    found = with_gradients(flow.call_and_ladj(x))
    torch.testing.assert_close(found, with_gradients(alone()))
    y = found[0][0].detach()
    torch.testing.assert_close(flow._inverse(y), x)


def prepared_chains(module: nn.Module) -> int:
    with prepared_together(module):
        return len(chains._PREPARED.get())


@pytest.mark.parametrize("network", NETWORKS)
def test_only_several_chains_of_few_entries_are_prepared(
    network: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = blocks(network=network)
    assert prepared_chains(flow) == 3
    assert prepared_chains(flow.parts[0]) == 0
    entries = sum(p.numel() for p in flow.parameters() if p.dim() == 2)
    monkeypatch.setattr(chains, "PREPARED_ENTRIES", entries - 1)
    assert prepared_chains(flow) == 0


def test_prepared_coefficients_end_with_the_pass() -> None:
    flow = blocks()
    with pytest.raises(ValueError, match=r"^x"), prepared_together(flow):
        flow.parts[0](torch.randn(2, 7))
    assert not chains._PREPARED.get()
    x = torch.randn(2, 3)
    before, _ = flow.call_and_ladj(x)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(0.5)
    assert not torch.allclose(flow.call_and_ladj(x)[0], before)


class Checkpointed(Residual):
    """A block that is computed again in the backward pass."""

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return checkpoint(super().call_and_ladj, x, use_reentrant=False)


@pytest.mark.skipif(not torch_is("2.8"), reason="checkpoints in a flow need torch 2.8")
@pytest.mark.parametrize("network", NETWORKS)
def test_a_checkpoint_inside_a_prepared_flow_computes_its_own(network: type[nn.Module]) -> None:
    flow = blocks(2, network)
    again = Compose([flow.parts[0], Checkpointed(flow.parts[1].net, logdet=Exact())])
    x = torch.randn(5, 3)
    gradients = []
    for each in (flow, again):
        y, ladj = each.call_and_ladj(x)
        gradients.append(torch.autograd.grad(y.sum() + ladj.sum(), list(flow.parameters())))
    torch.testing.assert_close(*gradients)


def test_replaced_weights_are_followed() -> None:
    flow = residual_flow(3, blocks=2, hidden_dims=[5], logdet=Exact())
    x = torch.randn(4, 3)
    halved = {name: 0.5 * p for name, p in flow.named_parameters()}
    found = torch.func.functional_call(flow, halved, (x,))
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(0.5)
    torch.testing.assert_close(found, flow(x))


def test_a_layer_with_a_weight_of_its_own_making_keeps_it() -> None:
    class Halved(LipschitzLinear):
        def effective_weight(self, gain: Tensor | float = 1.0) -> Tensor:
            return 0.5 * super().effective_weight(gain)

    nets = [LipschitzMLP(3, [5]), Chain([LipschitzLinear(3, 4), Halved(4, 3)])]
    found = coefficients_of([net.stages() for net in nets])
    torch.testing.assert_close(found, [net.coefficients() for net in nets])


class Doubled(nn.Module):
    """A user's own layer, 2 W x, whose stage is affine."""

    is_dense, bias = True, None

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))

    def effective_weight(self, gain: Tensor | float = 1.0) -> Tensor:
        return 2 * self.weight * gain

    def operator(self, weight: Tensor) -> MatrixOperator:
        return MatrixOperator(weight)

    def affine(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return nn.functional.linear(x, weight, bias)

    def stages(self) -> list[Affine]:
        return [Affine(self)]


def test_layers_of_other_classes_compute_their_own() -> None:
    net = Chain([Doubled(), LipSwish(), Doubled()])
    x = torch.randn(2, 3)
    expected = 2 * net[1](2 * x @ net[0].weight.t()) @ net[2].weight.t()
    torch.testing.assert_close(net(x), expected)
