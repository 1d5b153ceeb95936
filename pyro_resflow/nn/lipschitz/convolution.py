r"""Zero-padded convolutions of stride 1, their adjoints and their gradients.

Images are stored in the channels-last memory format, so that no convolution has to convert them. A
kernel with few output channels (in a block's last layer, or in the adjoint of its first layer)
multiplies each pixel by a small matrix and adds the shifted products. torch's convolution is built
for many channels: it would pad few of them and compute the padding too.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ...differentiation import torch_func_is_active


class Kernel:
    """A kernel in the layout that its convolutions need, prepared once for many of them.

    Args:
        prepared: a matrix, ``(in, out * size**2)``, of a thin kernel; any other kernel in the
            channels-last format.
        size: side of the kernel.
        is_matrix: whether it is thin, see :func:`is_thin`.
    """

    def __init__(self, prepared: Tensor, size: int, is_matrix: bool) -> None:
        self.prepared = prepared
        self.size = size
        self.is_matrix = is_matrix

    @classmethod
    def direct(cls, weight: Tensor) -> Kernel:
        """The kernel of a convolution by a weight, ``(out, in, k, k)``."""
        outputs, inputs, size, _ = weight.shape
        if is_thin(outputs, inputs, size):
            return cls(weight.flip(-2, -1).transpose(0, 1).flatten(1), size, True)
        return cls(channels_last(weight), size, False)

    @classmethod
    def adjoint(cls, weight: Tensor) -> Kernel:
        """The kernel of the adjoint of a convolution by a weight, ``(out, in, k, k)``."""
        outputs, inputs, size, _ = weight.shape
        if is_thin(inputs, outputs, size):
            return cls(weight.flatten(1), size, True)
        adjoint = weight.transpose(0, 1)
        if size > 1:
            adjoint = adjoint.flip(-2, -1)
        return cls(channels_last(adjoint), size, False)

    def convolve(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Convolve images, ``(N, in, H, W)``, and add a bias, ``(out,)``; differentiable."""
        if self.is_matrix:
            y = _scatter(x, self.prepared, self.size)
            return y if bias is None else y + bias.view(-1, 1, 1)
        return F.conv2d(channels_last(x), self.prepared, bias, padding=self.size // 2)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve images with a kernel; differentiable.

    Args:
        x: shape ``(N, in, H, W)``.
        weight: shape ``(out, in, k, k)``, k odd.
        bias: shape ``(out,)``.

    Returns:
        Shape ``(N, out, H, W)``.
    """
    return Kernel.direct(weight).convolve(x, bias)


def convolve_transposed(y: Tensor, weight: Tensor) -> Tensor:
    """The adjoint of :func:`convolve` without bias, differentiable.

    Args:
        y: shape ``(N, out, H, W)``.
        weight: shape ``(out, in, k, k)``, k odd.

    Returns:
        Shape ``(N, in, H, W)``.
    """
    return Kernel.adjoint(weight).convolve(y)


def kernel_gradient(y: Tensor, x: Tensor, shape: torch.Size) -> Tensor:
    """The gradient of ``(y * convolve(x, weight)).sum()`` with respect to the weight.

    Args:
        y: shape ``(N, out, H, W)``.
        x: shape ``(N, in, H, W)``.
        shape: shape of the weight, ``(out, in, k, k)``.
    """
    outputs, inputs, size, _ = shape
    if size == 1:
        return (_pixels(y).t() @ _pixels(x)).view(shape)
    if is_thin(outputs, inputs, size):
        gradient = (_windows(y, size) @ _pixels(x)).unflatten(0, (outputs, size, size))
        return gradient.permute(0, 3, 1, 2).flip(-2, -1)
    if is_thin(inputs, outputs, size):
        gradient = (_windows(x, size) @ _pixels(y)).t()
        return gradient.reshape(shape)
    dtype = torch.promote_types(x.dtype, y.dtype)
    return torch.ops.aten.convolution_backward(
        channels_last(y.to(dtype)),
        channels_last(x.to(dtype)),
        x.new_empty((), dtype=dtype).expand(shape),
        None,
        (1, 1),
        (size // 2, size // 2),
        (1, 1),
        False,
        (0, 0),
        1,
        (False, True, False),
    )[1]


def channels_last(x: Tensor) -> Tensor:
    """x, shape ``(N, C, H, W)``, in the channels-last memory format."""
    if torch_func_is_active():  # vmap has no rule for memory formats
        return x
    if x.shape[1] == 1:  # torch tells the two formats apart by the strides alone
        images, _, height, width = x.shape
        return x.contiguous().view(images, height, width, 1).permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last)


def is_thin(outputs: int, inputs: int, size: int) -> bool:
    """Whether a kernel is larger than 1x1 and ``outputs * size**2`` is at most ``inputs``."""
    return size > 1 and outputs * size * size <= inputs


def _windows(x: Tensor, size: int) -> Tensor:
    """The windows around all pixels of all images, one per column: ``(C k k, N H W)``."""
    return F.unfold(x, size, padding=size // 2).transpose(0, 1).flatten(1)


def _pixels(x: Tensor) -> Tensor:
    """The pixels of all images, one per row: ``(N H W, C)``."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def _scatter(x: Tensor, matrix: Tensor, size: int) -> Tensor:
    """Multiply pixels by a matrix, ``(in, out * size**2)``, and add the products that overlap."""
    products = torch.mm(_pixels(x), matrix)
    images, _, height, width = x.shape  # torch cannot infer a size of an empty batch
    columns = products.unflatten(0, (images, height * width)).transpose(1, 2)
    return F.fold(columns, (height, width), size, padding=size // 2)
