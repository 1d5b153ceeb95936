"""Glow's conditioner: three convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...arguments import checked
from ...rebuilding import Rebuildable
from .building_blocks import Convolution, InitializedConv2d
from .recipe import check_context


@checked()
@dataclass(frozen=True)
class ConvConditioner:
    """Recipe of Glow's conditioner: convolutions 3x3, 1x1, 3x3 with ReLUs between.

    The first batch normalises the outputs of the hidden layers. The last convolution starts at
    zero, and each of its channels has a learned gain. A context is concatenated to the input.

    Args:
        channels: width of both hidden layers.
        convolution: class of the hidden layers: :class:`InitializedConv2d` (default) or
            :class:`WeightNormConv2d`.

    Reference:
        Kingma and Dhariwal, Glow, 2018, section 3.3 and the authors' code;
        :class:`pyro_resflow.flows.Glow` lists the differences.

    Example:
        >>> import torch
        >>> from pyro_resflow.nn import ConvConditioner
        >>> net = ConvConditioner(channels=8)((3, 4, 4), out_channels=6)
        >>> net(torch.randn(5, 3, 4, 4)).abs().max()
        tensor(0., grad_fn=<MaxBackward1>)
    """

    channels: int = 512
    convolution: Convolution = InitializedConv2d

    def __call__(
        self, in_shape: Sequence[int], out_channels: int, context_channels: int = 0
    ) -> ConvNet:
        """The network, see :class:`Conditioner`."""
        return ConvNet(self, in_shape[0], out_channels, context_channels)


class ConvNet(Rebuildable, nn.Module):
    """The network of a :class:`ConvConditioner`.

    Args:
        recipe: its sizes and layers.
        in_channels: channels of the kept half.
        out_channels: channels of the result.
        context_channels: channels of the context, 0 for none.
    """

    def __init__(
        self,
        recipe: ConvConditioner,
        in_channels: int,
        out_channels: int,
        context_channels: int = 0,
    ) -> None:
        super().__init__()
        self.context_channels = context_channels
        width = recipe.channels
        self.first = recipe.convolution(in_channels + context_channels, width, 3)
        self.second = recipe.convolution(width, width, 1)
        self.last = ZeroConv2d(width, out_channels)

    def forward(self, a: Tensor, context: Tensor | None = None) -> Tensor:
        """Map ``(N, C, H, W)`` and a context ``(N, context_channels, H, W)`` to parameters."""
        check_context(context, self.context_channels)
        x = a if context is None else torch.cat([a, context], dim=1)
        return self.last(F.relu(self.second(F.relu(self.first(x)))))


GAIN_RATE = 3
"""Factor of the log-gain, as in Glow's published code: it speeds up the gain's training."""


class ZeroConv2d(nn.Module):
    r"""A 3x3 convolution that starts at zero, times :math:`e^{3 g}` with a learned g per channel.

    The gain lets the output grow faster than the weights.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.log_gain = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, C, H, W)`` to ``(N, out_channels, H, W)``."""
        y = F.conv2d(x, self.weight, self.bias, padding="same")
        return y * (GAIN_RATE * self.log_gain).exp().reshape(-1, 1, 1)
