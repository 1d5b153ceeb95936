"""Layers of conditioners: data-initialised convolutions, and normalisation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..initialization import DataInitialized, Moments

WEIGHT_STD = 0.05
"""Initial standard deviation of a kernel's entries, as in the paper on weight normalization."""


class InitializedConv2d(DataInitialized):
    """A convolution of stride 1 that keeps the image size; the first batch of data scales it.

    Until then it has its random initial weights, which are zero for ``std=0``.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: side of the kernel, odd.
        std: standard deviation of every channel of the output for the first batch; the mean is 0.
            With ``std=0`` the layer starts at zero.

    Reference:
        Salimans and Kingma, Weight Normalization, 2016, section 3.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, std: float = 1.0
    ) -> None:
        super().__init__()
        self.std = std
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self._draw(WEIGHT_STD * torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        if std == 0:
            with torch.no_grad():
                self._multiply(torch.zeros(out_channels))
        self._start(False)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, C, H, W)`` to ``(N, out_channels, H, W)``."""
        if self._awaits_batch(x, len(x)):
            y = F.conv2d(x, self.kernel(), padding="same")
            self._initialize(y.to(self.bias.dtype), self._standardize)
        return F.conv2d(x, self.kernel(), self.bias, padding="same")

    def kernel(self) -> Tensor:
        """The kernel, shape ``(out_channels, in_channels, kernel_size, kernel_size)``."""
        return self.weight

    def _draw(self, weight: Tensor) -> None:
        self.weight = nn.Parameter(weight)

    def _multiply(self, scale: Tensor) -> None:
        self.weight.mul_(scale.reshape(-1, 1, 1, 1))

    def _standardize(self, outputs: Moments) -> None:
        """Scale and shift the outputs, given their moments without a bias."""
        scale = self.std / outputs.std
        self._multiply(scale)
        self.bias.copy_(-outputs.mean * scale)


class WeightNormConv2d(InitializedConv2d):
    r"""An :class:`InitializedConv2d` whose kernel is :math:`g\,v / |v|` for each output channel.

    The magnitude g and the direction v are plain parameters, so that the layer can be copied and
    pickled, unlike torch's own parametrization.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: side of the kernel, odd.
        std: see :class:`InitializedConv2d`.

    Reference:
        Salimans and Kingma, Weight Normalization, 2016.
    """

    def kernel(self) -> Tensor:
        norm = torch.linalg.vector_norm(self.direction, dim=(1, 2, 3), keepdim=True)
        return self.direction * (self.magnitude.reshape(-1, 1, 1, 1) / norm)

    def _draw(self, weight: Tensor) -> None:
        self.direction = nn.Parameter(weight)
        self.magnitude = nn.Parameter(torch.ones(len(weight)))

    def _multiply(self, scale: Tensor) -> None:
        self.magnitude.mul_(scale)


Convolution = Callable[..., nn.Module]
"""Builds a convolution from ``(in_channels, out_channels, kernel_size, std=1.0)``."""


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each pixel of images ``(N, C, H, W)``.

    Args:
        channels: C.

    Reference:
        Ba, Kiros and Hinton, Layer Normalization, 2016.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def concat_elu(x: Tensor) -> Tensor:
    """Concatenate the ELU of x and of -x along the channels: one of the two never saturates."""
    return F.elu(torch.cat([x, -x], dim=1))
