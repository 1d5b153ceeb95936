"""The linear maps of the layers: batches, padding, biases, kernels."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from pyro_resflow.nn import Chain, LipschitzConv2d, LipschitzLayer, LipschitzLinear
from tests.nn.layers import event_shape


def test_linear_layer_is_affine_in_any_batch_shape() -> None:
    layer = LipschitzLinear(4, 5)
    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(layer(x), x @ layer.effective_weight().t() + layer.bias)


def test_convolution_pads_with_zeros_and_keeps_the_size() -> None:
    layer = LipschitzConv2d(2, 3, 5, (4, 6))
    x = torch.randn(7, 2, 4, 6)
    expected = F.conv2d(F.pad(x, [2] * 4), layer.effective_weight(), layer.bias)
    torch.testing.assert_close(layer(x), expected)
    assert layer(x).shape == (7, 3, 4, 6)


@pytest.mark.parametrize(
    "layer",
    [LipschitzLinear(3, 3, bias=False), LipschitzConv2d(3, 3, 1, (2, 2), bias=False)],
    ids=["linear", "convolution"],
)
def test_bias_can_be_left_out(layer: LipschitzLayer) -> None:
    x = torch.randn(2, *event_shape(layer))
    assert layer.bias is None
    torch.testing.assert_close(layer(-x), -layer(x))
    torch.testing.assert_close(Chain([layer]).dual(x, x[None])[1][0], layer(x))


@pytest.mark.parametrize("kernel_size", [0, 2, 4])
def test_even_kernel_is_refused(kernel_size: int) -> None:
    with pytest.raises(ValueError, match="kernel_size"):
        LipschitzConv2d(2, 3, kernel_size, (4, 4))
