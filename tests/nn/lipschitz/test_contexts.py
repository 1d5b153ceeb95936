"""Layers in functional calls, under another default dtype, and on the meta device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from pyro_resflow.nn import LipschitzLinear
from tests.networks import converged_norm
from tests.nn.layers import LAYERS, batch, layer_above_its_coefficient, operator_norm, redraw


@pytest.mark.parametrize("name", ["linear", "convolution", "induced"])
def test_functional_call_uses_the_tensors_given(name: str) -> None:
    layer = layer_above_its_coefficient(name).double()
    layer.norm.tolerance, layer.norm.max_iterations = 1e-15, 2000
    x = batch(name, torch.float64)
    expected = layer(x)
    u, v = layer.u.clone(), layer.v.clone()
    given = (3 * layer.weight).detach().requires_grad_()
    found = torch.func.functional_call(layer, {"weight": given}, x)
    torch.testing.assert_close(found, expected)  # thrice the weight has the same direction
    (gradient,) = torch.autograd.grad(found.square().sum(), given)
    (own,) = torch.autograd.grad(expected.square().sum(), layer.weight)
    torch.testing.assert_close(gradient, own / 3)
    torch.testing.assert_close((layer.u, layer.v), (u, v), rtol=0, atol=0)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("fresh", [False, True])
def test_functional_call_composes_with_vmap_and_grad(fresh: bool) -> None:
    layer = LipschitzLinear(4, 5, converged_norm(0.9)).double()
    redraw(layer)
    x = batch("linear", torch.float64)
    if not fresh:
        layer(x)
    parameters = {key: value.detach() for key, value in layer.named_parameters()}

    def loss(values: dict[str, Tensor], sample: Tensor) -> Tensor:
        return torch.func.functional_call(layer, values, sample).square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    (whole,) = torch.autograd.grad(layer(x).square().sum(), layer.weight)
    torch.testing.assert_close(per_sample["weight"].sum(0), whole)


@pytest.fixture
def _double_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_double_by_default")
@pytest.mark.parametrize("name", LAYERS)
def test_default_dtype_is_followed(name: str) -> None:
    layer = layer_above_its_coefficient(name)
    tensors = [*layer.parameters(), *layer.buffers()]
    assert {tensor.dtype for tensor in tensors} == {torch.float64}
    layer(torch.randn(3, *LAYERS[name][1])).sum().backward()
    assert layer.weight.grad.dtype == torch.float64


@pytest.mark.parametrize("name", LAYERS)
def test_meta_device_gives_shapes(name: str) -> None:
    expected = LAYERS[name][0]()(batch(name)).shape
    with torch.device("meta"):
        layer = LAYERS[name][0]()
        out = layer(torch.empty(3, *LAYERS[name][1]))
    assert out.is_meta
    assert out.shape == expected


def test_layer_made_on_the_meta_device_can_be_filled_later() -> None:
    with torch.device("meta"):
        layer = LipschitzLinear(8, 8, converged_norm(0.9))
        layer(torch.empty(3, 8))
    layer = layer.to_empty(device="cpu")
    layer.reset_parameters()
    redraw(layer)
    assert operator_norm(layer).item() == pytest.approx(0.9, rel=1e-5)


@pytest.mark.parametrize("name", ["linear", "convolution"])
def test_layer_made_in_inference_mode_can_be_evaluated_anywhere(name: str) -> None:
    with torch.inference_mode():
        layer = layer_above_its_coefficient(name)
    with torch.no_grad():
        layer(batch(name))
        assert operator_norm(layer).item() == pytest.approx(0.98, rel=1e-3)
    with torch.inference_mode():
        redraw(layer)
        layer(batch(name))
    with torch.no_grad():
        assert operator_norm(layer).item() == pytest.approx(0.98, rel=1e-3)
    with pytest.raises(ValueError, match=r"weight of \w+ .*torch.inference_mode"):
        layer(batch(name))
