"""Real NVP's conditioner: a residual network with weight and batch normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...arguments import checked
from ...rebuilding import Rebuildable
from .building_blocks import WeightNormConv2d
from .recipe import check_context

OUTPUT_STD = 0.1
"""Initial standard deviation of the output: near 0, so that a coupling starts near the identity.

At 0 it could not train: the amplitude of Real NVP's log-scale starts at 0 too, and if both factors
of a product are 0, both gradients are 0."""


@checked()
@dataclass(frozen=True)
class ResidualConditioner:
    """Recipe of Real NVP's conditioner: residual blocks with skip connections to the output.

    The input is batch-normalised and rectified with both signs,
    ``ReLU([2 BN(a), -2 BN(a), context])``; a coupling on whole images passes its mask as the
    context. Residual blocks follow; each applies batch norm, ReLU and a 3x3 convolution twice. 1x1
    convolutions of all states, including the first, are summed; batch norm, ReLU and a last 1x1
    convolution compute the output, whose standard deviation is 0.1 for the first batch.

    In training mode the output depends on the whole batch through the batch norms: call ``eval()``
    on a flow before you use its densities.

    Args:
        channels: width, 64 for the authors' CIFAR-10.
        blocks: number of residual blocks, 8 for the authors' CIFAR-10.

    Reference:
        Dinh, Sohl-Dickstein and Bengio, Density Estimation Using Real NVP, 2017, section 4.1.

    Example:
        >>> import torch
        >>> from pyro_resflow.nn import ResidualConditioner
        >>> net = ResidualConditioner(channels=8, blocks=2)((3, 4, 4), out_channels=6)
        >>> net(torch.randn(5, 3, 4, 4)).shape
        torch.Size([5, 6, 4, 4])
    """

    channels: int = 32
    blocks: int = 4

    def __call__(
        self, in_shape: Sequence[int], out_channels: int, context_channels: int = 0
    ) -> ResidualNet:
        """The network, see :class:`Conditioner`."""
        return ResidualNet(self, in_shape[0], out_channels, context_channels)


class ResidualNet(Rebuildable, nn.Module):
    """The network of a :class:`ResidualConditioner`.

    Args:
        recipe: its sizes.
        in_channels: channels of the kept half.
        out_channels: channels of the result.
        context_channels: channels of the context, 0 for none.
    """

    def __init__(
        self,
        recipe: ResidualConditioner,
        in_channels: int,
        out_channels: int,
        context_channels: int = 0,
    ) -> None:
        super().__init__()
        self.context_channels = context_channels
        width = recipe.channels
        self.input_norm = nn.BatchNorm2d(in_channels, affine=False)
        self.first = WeightNormConv2d(2 * in_channels + context_channels, width, 3)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(recipe.blocks))
        self.skips = nn.ModuleList(
            WeightNormConv2d(width, width, 1) for _ in range(recipe.blocks + 1)
        )
        self.last_norm = nn.BatchNorm2d(width)
        self.last = WeightNormConv2d(width, out_channels, 1, std=OUTPUT_STD)

    def forward(self, a: Tensor, context: Tensor | None = None) -> Tensor:
        """Map ``(N, C, H, W)`` and a context ``(N, context_channels, H, W)`` to parameters."""
        check_context(context, self.context_channels)
        normalized = 2 * self.input_norm(a)
        signs = [normalized, -normalized, *([] if context is None else [context])]
        state = self.first(F.relu(torch.cat(signs, dim=1)))
        first_skip, *skips = self.skips
        total = first_skip(state)
        for block, skip in zip(self.blocks, skips, strict=True):
            state = block(state)
            total = total + skip(state)
        return self.last(F.relu(self.last_norm(total)))


class _Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(2))
        self.convolutions = nn.ModuleList(
            WeightNormConv2d(channels, channels, 3) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        hidden = x
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            hidden = convolution(F.relu(norm(hidden)))
        return x + hidden
