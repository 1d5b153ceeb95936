"""The effective weight: its norm, gradients, precision, and errors."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from pyro_resflow.nn import LipschitzConv2d, LipschitzLinear, NonFiniteWeightError
from tests.derivatives import check_gradients
from tests.networks import converged_norm
from tests.nn.layers import LAYERS, batch, layer_above_its_coefficient, operator_norm, redraw


@pytest.mark.parametrize("name", LAYERS)
def test_weight_below_the_coefficient_passes_unchanged(name: str) -> None:
    layer = LAYERS[name][0]()
    with torch.no_grad():
        layer.weight.mul_(0.05)
    assert layer.sigma() < 0.98
    torch.testing.assert_close(layer.effective_weight(), layer.weight, rtol=0, atol=0)


@pytest.mark.parametrize("coefficient", [0.3, 0.97])
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_weight_above_the_coefficient_is_brought_down_to_it(kind: str, coefficient: float) -> None:
    norm = converged_norm(coefficient)
    if kind == "linear":
        layer = LipschitzLinear(7, 5, norm).double()
    else:
        layer = LipschitzConv2d(2, 3, 3, (4, 5), norm).double()
    redraw(layer)
    assert operator_norm(layer).item() == pytest.approx(coefficient, rel=1e-9)
    assert layer.lipschitz_bound().item() == pytest.approx(coefficient, rel=1e-3)


def test_default_power_iteration_keeps_random_layers_certified() -> None:
    for width in (3, 30, 100):
        layer = LipschitzLinear(width, width)
        redraw(layer)
        assert 0.97 < layer.lipschitz_bound() < 1


@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("linear", "weight"),
        ("convolution", "weight"),
        ("induced", "weight"),
        ("induced", "orders"),
    ],
)
def test_gradient_of_the_effective_weight_is_that_of_finite_differences(
    name: str, of: str
) -> None:
    layer = layer_above_its_coefficient(name).double()
    layer.norm.tolerance, layer.norm.max_iterations = 1e-15, 2000
    parameters = [layer.weight] if of == "weight" else list(layer.norm.parameters())
    direction = torch.randn_like(layer.weight)

    def value() -> Tensor:
        return (layer.effective_weight() * direction).sum()

    check_gradients(value, parameters, rtol=1e-6, atol=1e-8)


def test_weights_are_seen_alike_with_and_without_gradients() -> None:
    layer = layer_above_its_coefficient("convolution")
    with torch.no_grad():
        cached = layer.effective_weight()
    torch.testing.assert_close(layer.effective_weight(), cached, rtol=0, atol=0)


@pytest.mark.parametrize("name", LAYERS)
def test_autocast_leaves_the_norm_in_full_precision(name: str) -> None:
    layer = layer_above_its_coefficient(name)
    expected = layer.effective_weight()
    redraw(clone := copy.deepcopy(layer))
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            clone.weight.copy_(layer.weight)
        assert clone(batch(name)).dtype == torch.bfloat16
        found = clone.effective_weight()
    assert found.dtype == torch.float32
    # both stop within the norm's tolerance of 1e-5; bfloat16 would be off by 4e-3
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
def test_weight_that_is_not_finite_is_refused(value: float) -> None:
    layer = LipschitzLinear(4, 5)
    with torch.no_grad():
        layer.weight[2, 3] = value
    with pytest.raises(NonFiniteWeightError, match=r"weight of LipschitzLinear .*\(5, 4\)"):
        layer(torch.randn(3, 4))
    assert set(layer.state_dict()) == {"weight", "bias", "u", "v"}  # it can be saved all the same
