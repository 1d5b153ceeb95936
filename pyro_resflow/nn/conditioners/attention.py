"""Flow++'s networks: stacks of gated convolutions and gated self-attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ...arguments import checked
from ...rebuilding import Rebuildable
from .building_blocks import ChannelNorm, Convolution, InitializedConv2d, concat_elu
from .gated import GATE_STD, GatedConv, GatedSelfAttention, Mixing


@checked()
@dataclass(frozen=True)
class GatedEncoder:
    """Recipe of a network for image features: a 3x3 convolution, then gated convolutions.

    The defaults are the network that Flow++'s dequantizer applies to an image of CIFAR-10.

    Args:
        channels: width, and channels of the features.
        blocks: number of gated convolutions.
        norm: whether layer normalisation over channels follows each layer.
        mixing: builds the layer that follows each gated convolution:
            :class:`GatedSelfAttention`, :class:`GatedMaxout`, or None for no such layer.
        kernel_size: side of the second kernel of each gated convolution.
        dropout: probability that a hidden entry is dropped in training.
        convolution: :class:`InitializedConv2d` (default) or :class:`WeightNormConv2d`.

    Reference:
        Ho et al., Flow++, 2019, section 3.3, and the authors' code.

    Example:
        >>> import torch
        >>> from pyro_resflow.nn import GatedEncoder
        >>> GatedEncoder(8)((3, 4, 4))(torch.randn(5, 3, 4, 4)).shape
        torch.Size([5, 8, 4, 4])
    """

    channels: int = 32
    blocks: int = 3
    norm: bool = False
    mixing: Mixing | None = None
    kernel_size: int = 3
    dropout: float = 0.0
    convolution: Convolution = InitializedConv2d

    def __call__(self, in_shape: Sequence[int], context_channels: int = 0) -> GatedStack:
        """The network for images of shape ``in_shape``."""
        return GatedStack(self, in_shape, context_channels)


POSITION_STD = 0.01
"""Initial standard deviation of the position embedding, as in the authors' code."""


class GatedStack(Rebuildable, nn.Module):
    """The network of a :class:`GatedEncoder`; all blocks share the position embedding.

    Args:
        recipe: its sizes and layers.
        in_shape: ``(C, H, W)``.
        context_channels: channels of the context, 0 for none.
    """

    def __init__(
        self, recipe: GatedEncoder, in_shape: Sequence[int], context_channels: int = 0
    ) -> None:
        super().__init__()
        width = recipe.channels
        self.first = recipe.convolution(in_shape[0], width, 3)
        if recipe.mixing is not None:
            self.positions = nn.Parameter(POSITION_STD * torch.randn(width, *in_shape[1:]))
        else:
            self.register_parameter("positions", None)
        self.blocks = nn.ModuleList(_Block(recipe, context_channels) for _ in range(recipe.blocks))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map ``(N, C, H, W)`` and a context ``(N, context_channels, H, W)`` to the features."""
        hidden = self.first(x)
        for block in self.blocks:
            hidden = block(hidden, context, self.positions)
        return hidden


class _Block(nn.Module):
    def __init__(self, recipe: GatedEncoder, context_channels: int) -> None:
        super().__init__()
        width, dropout, convolution = recipe.channels, recipe.dropout, recipe.convolution
        self.conv = GatedConv(
            width,
            context_channels,
            kernel_size=recipe.kernel_size,
            dropout=dropout,
            convolution=convolution,
        )
        self.conv_norm = ChannelNorm(width) if recipe.norm else nn.Identity()
        self.mixing = recipe.mixing(width, dropout, convolution) if recipe.mixing else None
        self.mixing_norm = ChannelNorm(width) if recipe.norm and recipe.mixing else nn.Identity()

    def forward(self, x: Tensor, context: Tensor | None, positions: Tensor | None) -> Tensor:
        x = self.conv_norm(self.conv(x, context))
        return x if self.mixing is None else self.mixing_norm(self.mixing(x, positions))


@checked()
@dataclass(frozen=True)
class GatedAttentionConditioner:
    """Recipe of Flow++'s conditioner: gated convolutions, each followed by gated self-attention.

    A 3x3 convolution, blocks of (gated convolution, layer norm, attention, layer norm), and a 3x3
    convolution. The output starts near 0 but not at 0, so that the components of a mixture differ
    from the first step on.

    Args:
        channels: width.
        blocks: number of blocks.
        mixing: :class:`GatedSelfAttention` (default), :class:`GatedMaxout`, or None for gated
            convolutions alone.
        dropout: probability that a hidden entry is dropped in training; the authors use 0.2 for
            CIFAR-10.
        convolution: :class:`InitializedConv2d` (default) or :class:`WeightNormConv2d`.
        last_activation: whether a concatenated ELU precedes the last convolution, as in the
            authors' models of ImageNet.

    Reference:
        Ho et al., Flow++, 2019, section 3.3.

    Example:
        >>> import torch
        >>> from pyro_resflow.nn import GatedAttentionConditioner
        >>> net = GatedAttentionConditioner(channels=8, blocks=2)((3, 4, 2), out_channels=6)
        >>> net(torch.randn(5, 3, 4, 2)).shape
        torch.Size([5, 6, 4, 2])
    """

    channels: int = 96
    blocks: int = 10
    mixing: Mixing | None = field(default_factory=GatedSelfAttention)
    dropout: float = 0.0
    convolution: Convolution = InitializedConv2d
    last_activation: bool = False

    def __call__(
        self, in_shape: Sequence[int], out_channels: int, context_channels: int = 0
    ) -> GatedNet:
        """The network, see :class:`Conditioner`."""
        encoder = GatedEncoder(
            self.channels,
            self.blocks,
            norm=True,
            mixing=self.mixing,
            kernel_size=1,
            dropout=self.dropout,
            convolution=self.convolution,
        )
        width = 2 * self.channels if self.last_activation else self.channels
        return GatedNet(
            encoder(in_shape, context_channels),
            self.convolution(width, out_channels, 3, std=GATE_STD),
            self.last_activation,
        )


class GatedNet(Rebuildable, nn.Module):
    """The network of a :class:`GatedAttentionConditioner`.

    Args:
        features: computes features of the kept half.
        last: computes the parameters from the features.
        last_activation: whether a concatenated ELU precedes ``last``.
    """

    def __init__(self, features: GatedStack, last: nn.Module, last_activation: bool) -> None:
        super().__init__()
        self.features = features
        self.last = last
        self.last_activation = last_activation

    def forward(self, a: Tensor, context: Tensor | None = None) -> Tensor:
        """Map ``(N, C, H, W)`` and a context ``(N, context_channels, H, W)`` to parameters."""
        features = self.features(a, context)
        return self.last(concat_elu(features) if self.last_activation else features)
