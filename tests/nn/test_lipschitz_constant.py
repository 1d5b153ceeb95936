"""The bound of a network's coefficients is at least its certified bound."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pyro_resflow.nn import (
    Chain,
    ConditionalLipschitzMLP,
    InducedNorm,
    LipschitzConvNet,
    LipschitzDenseNet,
    LipschitzLinear,
    LipschitzMLP,
    LipSwish,
    SpectralNorm,
)
from pyro_resflow.nn.lipschitz_constant import nominal_lipschitz_constant


def large(network: nn.Module) -> nn.Module:
    """The network with weights so large that each layer is divided by its norm."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.mul_(20)
    return network


@pytest.mark.parametrize(
    ("network", "constant"),
    [
        (LipschitzMLP(3, [8, 8], norm=SpectralNorm(0.9)), 0.9**3),
        (LipschitzConvNet((2, 4, 4), [4], kernel_sizes=(3, 3), norm=SpectralNorm(0.7)), 0.7**2),
        (LipschitzMLP(2, [8], norm=InducedNorm.chain(2, coefficient=0.8)), 0.8**2),
    ],
)
def test_the_product_of_coefficients_bounds_the_certified_constant(
    network: Chain, constant: float
) -> None:
    assert nominal_lipschitz_constant(network) == pytest.approx(constant)
    certified = float(large(network).lipschitz_bound())
    assert certified == pytest.approx(constant, rel=0.02)


def test_a_dense_net_is_bounded_by_its_weights() -> None:
    network = LipschitzDenseNet(3, depth=2, growth=4, norm=SpectralNorm(0.9))
    half = math.hypot(math.sqrt(0.5), math.sqrt(0.5) * 0.9)  # both parts weigh the same at first
    assert nominal_lipschitz_constant(network) == pytest.approx(half**2 * 0.9)
    assert float(large(network).lipschitz_bound()) == pytest.approx(half**2 * 0.9, rel=0.02)


def test_a_context_changes_nothing() -> None:
    network = ConditionalLipschitzMLP(2, 3, [8], norm=SpectralNorm(0.9))
    assert (
        nominal_lipschitz_constant(network)
        == nominal_lipschitz_constant(network.bind(torch.randn(5, 3)))
        == pytest.approx(0.81)
    )


def test_what_is_not_known() -> None:
    assert nominal_lipschitz_constant(nn.Linear(2, 2)) is None
    norms = [InducedNorm(3.0, 2.0), InducedNorm(3.0, 2.0)]
    linear = [LipschitzLinear(2, 2, norm) for norm in norms]
    assert nominal_lipschitz_constant(Chain([linear[0], LipSwish(), linear[1]])) is None

    class Stages(nn.Module):
        def stages(self) -> list[object]:
            return []

    assert nominal_lipschitz_constant(Chain([LipschitzLinear(2, 2), Stages()])) is None
