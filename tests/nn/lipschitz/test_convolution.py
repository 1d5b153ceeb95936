from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_resflow.nn.lipschitz.convolution import (
    channels_last,
    convolve,
    convolve_transposed,
    is_thin,
    kernel_gradient,
)

# channels out and in, and the kernel's side: thin on either side, on both, on none; one pixel
KERNELS = [(1, 64, 3), (64, 1, 3), (2, 60, 5), (60, 2, 5), (5, 7, 3), (1, 1, 3), (6, 6, 1)]


def operands(outputs: int, inputs: int, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x = torch.randn(3, inputs, 6, 7, dtype=torch.float64)
    y = torch.randn(3, outputs, 6, 7, dtype=torch.float64)
    weight = torch.randn(outputs, inputs, size, size, dtype=torch.float64)
    return x, y, weight, torch.randn(outputs, dtype=torch.float64)


@pytest.mark.parametrize("kernel", KERNELS)
def test_convolution_its_adjoint_and_its_gradient_are_those_of_torch(
    kernel: tuple[int, int, int],
) -> None:
    x, y, weight, bias = operands(*kernel)
    for leaf in (x, weight):
        leaf.requires_grad_()
    expected = F.conv2d(x, weight, bias, padding=kernel[2] // 2)
    by_x, by_weight = torch.autograd.grad((expected * y).sum(), (x, weight))
    found = convolve(x, weight, bias)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(convolve_transposed(y, weight), by_x)
    torch.testing.assert_close(kernel_gradient(y, x.detach(), weight.shape), by_weight)
    torch.testing.assert_close(
        torch.autograd.grad((found * y).sum(), (x, weight)), (by_x, by_weight)
    )


@pytest.mark.parametrize("kernel", KERNELS)
def test_convolutions_can_be_differentiated_twice(kernel: tuple[int, int, int]) -> None:
    x, _, weight, _ = operands(*kernel)
    x, weight = x[:1, :, :2, :2].requires_grad_(), weight.requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: convolve(x, weight).square(), x)
    assert torch.autograd.gradgradcheck(
        lambda x: convolve_transposed(convolve(x, weight), weight), x
    )


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("leading", [0, 3])
def test_channels_are_side_by_side_also_where_there_is_one(channels: int, leading: int) -> None:
    x = channels_last(torch.randn(leading, channels, 5, 6))
    assert x.stride()[1:] == (1, 6 * channels, channels)
    y = convolve(x, torch.randn(8, channels, 3, 3))
    assert y.shape == (leading, 8, 5, 6)
    if leading:
        assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(channels_last(x.contiguous()), x, rtol=0, atol=0)


def test_thin_kernels_are_those_with_fewer_products_than_channels() -> None:
    assert is_thin(1, 64, 3)
    assert is_thin(7, 63, 3)
    assert not is_thin(8, 63, 3)
    assert not is_thin(1, 64, 1)  # a product with each pixel already


@pytest.mark.parametrize("kernel", KERNELS)
def test_convolutions_of_no_image(kernel: tuple[int, int, int]) -> None:
    x, y, weight, bias = operands(*kernel)
    x, y = x[:0], y[:0]
    assert convolve(x, weight, bias).shape == y.shape
    assert convolve_transposed(y, weight).shape == x.shape
    assert torch.equal(kernel_gradient(y, x, weight.shape), torch.zeros_like(weight))
