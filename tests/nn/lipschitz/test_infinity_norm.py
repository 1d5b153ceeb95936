"""Layers with a bounded infinity norm."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyro_resflow.nn import (
    Chain,
    FixedLipSwish,
    InfinityNormLinear,
    LipschitzLinear,
    check_contraction,
)
from pyro_resflow.nn.lipschitz.infinity_norm import effective_weights
from pyro_resflow.nn.lipschitz_constant import nominal_lipschitz_constant


@given(
    scale=st.floats(1e-3, 1e3),
    coefficient=st.floats(0.1, 2.0),
    seed=st.integers(0, 2**16),
)
def test_each_row_is_divided_by_its_own_excess(
    scale: float, coefficient: float, seed: int
) -> None:
    torch.manual_seed(seed)
    layer = InfinityNormLinear(4, 6, coefficient).double()
    with torch.no_grad():
        layer.weight.normal_(std=scale)
    rows = layer.weight.abs().sum(1)
    expected = layer.weight / (rows / coefficient).clamp_min(1)[:, None]
    torch.testing.assert_close(layer.effective_weight(), expected)
    assert layer.lipschitz_bound() <= coefficient * (1 + 1e-14)
    x = torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(layer(x), x @ expected.T + layer.bias)


def test_rows_below_the_bound_stay_as_they_are() -> None:
    layer = InfinityNormLinear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.5, -0.25], [3.0, -1.0]]))
    expected = torch.tensor([[0.5, -0.25], [0.75, -0.25]])
    torch.testing.assert_close(layer.effective_weight(), expected)


class Doubled(InfinityNormLinear):
    """A layer with a weight of its own."""

    def effective_weight(self, gain: torch.Tensor | float = 1.0) -> torch.Tensor:
        return 2 * super().effective_weight(gain)


def test_weights_of_several_layers_are_those_of_each() -> None:
    layers = [
        InfinityNormLinear(3, 4),
        InfinityNormLinear(3, 4),
        InfinityNormLinear(3, 4),
        InfinityNormLinear(3, 4),
        InfinityNormLinear(3, 4, 0.7),
        InfinityNormLinear(4, 3),
        InfinityNormLinear(3, 4).double(),
        Doubled(3, 4),
    ]
    gains = [1.0, 1.0, 0.9, torch.tensor(1.0, requires_grad=True), 1.0, 1.0, 1.0, 1.0]
    with torch.no_grad():
        for layer in layers:
            layer.weight.mul_(3)
    together = effective_weights(layers, gains)
    alone = [layer.effective_weight(gain) for layer, gain in zip(layers, gains, strict=True)]
    torch.testing.assert_close(together, alone, rtol=0, atol=0)
    assert together[0]._base is together[1]._base is not None  # computed together
    assert together[2]._base is together[3]._base is together[7]._base is None
    weights = [layer.weight for layer in layers]
    gradients = (
        torch.autograd.grad([found.sin().sum() for found in each], [*weights, gains[3]])
        for each in (together, alone)
    )
    torch.testing.assert_close(*gradients)


def test_gradients_are_those_of_finite_differences() -> None:
    layer = InfinityNormLinear(3, 4).double()
    with torch.no_grad():
        layer.weight.mul_(torch.tensor([[0.3], [3.0], [5.0], [0.5]]))

    def output(weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, {"weight": weight}, torch.ones(2, 3).double())

    weight = layer.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(output, weight)
    assert torch.autograd.gradgradcheck(output, weight)


@pytest.mark.parametrize("coefficient", [0.0, -1.0, float("nan")])
def test_a_coefficient_that_is_not_positive_is_refused(coefficient: float) -> None:
    with pytest.raises(ValueError, match="coefficient: expected a positive number"):
        InfinityNormLinear(2, 2, coefficient)


def test_a_mixture_with_spectral_norms_is_not_certified() -> None:
    mixed = Chain([InfinityNormLinear(2, 8), FixedLipSwish(), LipschitzLinear(8, 2)])
    with pytest.raises(ValueError, match=r"bound one norm.*InfinityNormLinear beside Lipschitz"):
        check_contraction(mixed)
    assert nominal_lipschitz_constant(mixed) is None


def test_a_chain_of_such_layers_is_certified() -> None:
    net = Chain([InfinityNormLinear(2, 8, 0.9), FixedLipSwish(), InfinityNormLinear(8, 2)])
    check_contraction(net)
    assert nominal_lipschitz_constant(net) == pytest.approx(0.9)
