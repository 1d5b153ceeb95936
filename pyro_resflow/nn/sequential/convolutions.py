"""Convolutions of any stride, dilation and groups as linear operators on images of one size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

Pair = tuple[int, int]


@dataclass(frozen=True)
class Geometry:
    """The settings of a convolution with zero padding.

    Attributes:
        stride: along height and width.
        padding: on both sides of height and width.
        dilation: along height and width.
        groups: number of groups of channels.
    """

    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The convolution of images, ``(N, C, H, W)``."""
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def transposed(
        self, x: Tensor, weight: Tensor, extra: Pair, bias: Tensor | None = None
    ) -> Tensor:
        """The transposed convolution of images, ``(N, C, H, W)``, with an output padding."""
        return F.conv_transpose2d(
            x, weight, bias, self.stride, self.padding, extra, self.groups, self.dilation
        )

    def weight_gradient(self, u: Tensor, x: Tensor, shape: torch.Size) -> Tensor:
        """The gradient of ``(u * convolve(x, weight)).sum()`` with respect to the weight."""
        dtype = torch.promote_types(x.dtype, u.dtype)  # autocast may have lowered one of them
        gradient: Tensor = conv2d_weight(
            x.to(dtype),
            shape,
            u.to(dtype),
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )
        return gradient

    def lost(self, size: torch.Size, kernel: torch.Size) -> Pair:
        """The rows and columns at the end of an image that no window of the kernel reaches."""
        rows, columns = (
            (n + 2 * p - d * (k - 1) - 1) % s
            for n, k, s, p, d in zip(
                size, kernel, self.stride, self.padding, self.dilation, strict=True
            )
        )
        return rows, columns


@dataclass(frozen=True, eq=False)
class StridedConvolution:
    """A convolution on images of one size.

    Args:
        weight: shape ``(out, in / groups, h, w)``.
        geometry: the settings.
        input_size: height and width of the images.
    """

    weight: Tensor
    geometry: Geometry
    input_size: torch.Size

    def apply(self, v: Tensor) -> Tensor:
        """A v, see :class:`pyro_resflow.nn.lipschitz.operators.LinearOperator`."""
        return _each(lambda images: self.geometry.convolve(images, self.weight), v)

    def adjoint(self, u: Tensor) -> Tensor:
        """A^T u."""
        extra = self.geometry.lost(self.input_size, self.weight.shape[2:])
        return _each(lambda images: self.geometry.transposed(images, self.weight, extra), u)

    def outer(self, *pairs: tuple[Tensor, Tensor]) -> Tensor:
        """The gradient of the sum of u^T A v over pairs (u, v) with respect to the weight."""
        shape = self.weight.shape
        found = (self.geometry.weight_gradient(_images(u), _images(v), shape) for u, v in pairs)
        return reduce(torch.add, found)


@dataclass(frozen=True, eq=False)
class TransposedConvolution:
    """The adjoint of a convolution.

    Args:
        weight: shape ``(in, out / groups, h, w)``.
        geometry: the settings.
        output_padding: rows and columns that are added at the end, fewer than the stride.
    """

    weight: Tensor
    geometry: Geometry
    output_padding: Pair

    def apply(self, v: Tensor) -> Tensor:
        """A v, see :class:`pyro_resflow.nn.lipschitz.operators.LinearOperator`."""
        return _each(
            lambda images: self.geometry.transposed(images, self.weight, self.output_padding), v
        )

    def adjoint(self, u: Tensor) -> Tensor:
        """A^T u."""
        return _each(lambda images: self.geometry.convolve(images, self.weight), u)

    def outer(self, *pairs: tuple[Tensor, Tensor]) -> Tensor:
        """The gradient of the sum of u^T A v over pairs (u, v) with respect to the weight."""
        shape = self.weight.shape
        found = (self.geometry.weight_gradient(_images(v), _images(u), shape) for u, v in pairs)
        return reduce(torch.add, found)


def _images(x: Tensor) -> Tensor:
    """Images, ``(*, C, H, W)``, with one leading dimension."""
    return x if x.dim() == 4 else x.reshape(-1, *x.shape[-3:])


def _each(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A function of images with one leading dimension, applied at any leading dimensions."""
    images = function(_images(x))
    return images if x.dim() == 4 else images.reshape(*x.shape[:-3], *images.shape[1:])
