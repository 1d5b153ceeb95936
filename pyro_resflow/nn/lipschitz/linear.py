"""Linear and convolution layers with a bounded Lipschitz constant."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from .convolution import convolve
from .layer import LipschitzLayer
from .operator_norm import OperatorNorm
from .operators import ConvolutionOperator, LinearOperator, MatrixOperator
from .spectral_norm import SpectralNorm


class LipschitzLinear(LipschitzLayer):
    r"""Affine map :math:`W_c x + b` whose matrix has a bounded norm.

    Args:
        in_features: size of each input.
        out_features: size of each output.
        norm: the norm and its coefficient; default :class:`SpectralNorm`.
        bias: whether to add b.

    Shapes: ``(*, in_features)`` to ``(*, out_features)``.

    Example:
        >>> import torch
        >>> from pyro_resflow.nn import LipschitzLinear, SpectralNorm
        >>> layer = LipschitzLinear(3, 5, SpectralNorm(0.9))
        >>> bool(layer.lipschitz_bound() < 0.91)
        True
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        norm: OperatorNorm | None = None,
        *,
        bias: bool = True,
    ) -> None:
        self.in_features = in_features
        self.out_features = out_features
        super().__init__(
            (out_features, in_features),
            in_features,
            out_features,
            norm if norm is not None else SpectralNorm(),
            bias,
        )

    @property
    def is_dense(self) -> bool:
        """Whether the map is the product with the weight plus the bias, unless overridden."""
        kind = type(self)
        return kind.operator is LipschitzLinear.operator and kind.affine is LipschitzLinear.affine

    def operator(self, weight: Tensor) -> LinearOperator:
        return MatrixOperator(weight)

    def affine(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(x, weight, bias)


class LipschitzConv2d(LipschitzLayer):
    r"""Zero-padded convolution of stride 1 whose operator has a bounded norm.

    The norm is that of the convolution as a linear map on images of ``input_size``, not of the
    reshaped kernel (which can be smaller by a factor of the kernel's width).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: odd side of the kernel; the image size stays the same.
        input_size: height and width of the images.
        norm: the norm and its coefficient; default :class:`SpectralNorm`.
        bias: whether to add one constant per output channel.

    Shapes: ``(N, in_channels, H, W)`` to ``(N, out_channels, H, W)``.

    Raises:
        ValueError: for an even kernel size, and when called, for images of another size, since
            the norm depends on it (except for the spectral norm of a 1x1 kernel).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        input_size: tuple[int, int],
        norm: OperatorNorm | None = None,
        *,
        bias: bool = True,
    ) -> None:
        if kernel_size % 2 == 0:
            raise ValueError(
                f"kernel_size: expected an odd number, which keeps the image size; got "
                f"{kernel_size}."
            )
        norm = norm if norm is not None else SpectralNorm()
        self.input_size = input_size
        self.acts_on_pixels = kernel_size == 1 and isinstance(norm, SpectralNorm)
        pixels = 1 if self.acts_on_pixels else input_size[0] * input_size[1]
        super().__init__(
            (out_channels, in_channels, kernel_size, kernel_size),
            in_channels * pixels,
            out_channels * pixels,
            norm,
            bias,
        )

    def operator(self, weight: Tensor) -> LinearOperator:
        return ConvolutionOperator(weight, self.input_size)

    def measured_operator(self, weight: Tensor) -> LinearOperator:
        """The matrix that acts on each pixel for a 1x1 convolution, else the convolution."""
        return MatrixOperator(weight.flatten(1)) if self.acts_on_pixels else self.operator(weight)

    def kind(self) -> tuple[Any, ...]:
        return super().kind() if self.acts_on_pixels else (*super().kind(), self.input_size)

    def affine(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if not self.acts_on_pixels and x.shape[-2:] != self.input_size:
            raise ValueError(
                f"x: expected images of {self.input_size[0]}x{self.input_size[1]} pixels, for "
                f"which the norm of the convolution was measured, got {tuple(x.shape[-2:])}; "
                "make the layer with another input_size."
            )
        return convolve(x, weight, bias)
