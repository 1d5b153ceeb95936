"""Jet's conditioner: a vision transformer whose tokens are pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...arguments import checked
from ...rebuilding import Rebuildable
from .gated import attention
from .recipe import check_context

EXPANSION = 4
"""Width of a block's hidden layer, as a multiple of the network's, as in vision transformers."""

EPSILON = 1e-6
"""Added to variances in layer normalisation, as in the authors' code."""


@checked()
@dataclass(frozen=True)
class TransformerConditioner:
    """Recipe of Jet's conditioner: a vision transformer with one token for each pixel.

    Squeeze images first: a pixel of a squeezed image holds a patch. A linear layer embeds each
    pixel, together with the context, and a learned position is added. Blocks of self-attention and
    of a multilayer perceptron follow, each after a layer normalisation and added to its input. The
    last linear layer starts at zero.

    Args:
        channels: width.
        blocks: number of blocks.
        heads: number of attention heads, a divisor of ``channels``.

    Raises:
        ValueError: when called, if the heads do not divide the channels.

    Reference:
        Kolesnikov, Pinto and Tschannen, Jet: A Modern Transformer-Based Normalizing Flow, 2024;
        Dosovitskiy et al., An Image is Worth 16x16 Words, 2021.

    Example:
        >>> import torch
        >>> from pyro_resflow.nn import TransformerConditioner
        >>> net = TransformerConditioner(8, blocks=1, heads=2)((3, 4, 4), out_channels=6)
        >>> net(torch.randn(5, 3, 4, 4)).shape
        torch.Size([5, 6, 4, 4])
    """

    channels: int = 512
    blocks: int = 2
    heads: int = 8

    def __call__(
        self, in_shape: Sequence[int], out_channels: int, context_channels: int = 0
    ) -> TransformerNet:
        """The network, see :class:`Conditioner`."""
        if self.channels % self.heads:
            raise ValueError(
                f"heads: expected a divisor of the {self.channels} channels, got {self.heads}."
            )
        return TransformerNet(self, in_shape, out_channels, context_channels)


class TransformerNet(Rebuildable, nn.Module):
    """The network of a :class:`TransformerConditioner`.

    Args:
        recipe: its sizes.
        in_shape: ``(C, H, W)`` of the kept half.
        out_channels: channels of the result.
        context_channels: channels of the context, 0 for none.
    """

    def __init__(
        self,
        recipe: TransformerConditioner,
        in_shape: Sequence[int],
        out_channels: int,
        context_channels: int = 0,
    ) -> None:
        super().__init__()
        in_channels, height, width = in_shape
        self.context_channels = context_channels
        self.first = nn.Linear(in_channels + context_channels, recipe.channels)
        positions = torch.randn(height * width, recipe.channels)
        self.positions = nn.Parameter(positions / math.sqrt(recipe.channels))
        self.blocks = nn.ModuleList(
            _Block(recipe.channels, recipe.heads) for _ in range(recipe.blocks)
        )
        self.norm = nn.LayerNorm(recipe.channels, EPSILON)
        self.last = nn.Linear(recipe.channels, out_channels)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, a: Tensor, context: Tensor | None = None) -> Tensor:
        """Map ``(N, C, H, W)`` and a context ``(N, context_channels, H, W)`` to parameters."""
        check_context(context, self.context_channels)
        x = a if context is None else torch.cat([a, context], dim=1)
        tokens = self.first(x.flatten(2).mT) + self.positions
        for block in self.blocks:
            tokens = block(tokens)
        return self.last(self.norm(tokens)).mT.unflatten(2, a.shape[2:])


class _Block(nn.Module):
    """Self-attention and a multilayer perceptron, each added to its input.

    Args:
        channels: width.
        heads: number of heads.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(channels, EPSILON) for _ in range(2))
        self.project = _linear(channels, 3 * channels)
        self.join = _linear(channels, channels)
        self.expand = _linear(channels, EXPANSION * channels)
        self.contract = _linear(EXPANSION * channels, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attended(self.norms[0](tokens))
        hidden = F.gelu(self.expand(self.norms[1](tokens)), approximate="tanh")
        return tokens + self.contract(hidden)

    def attended(self, tokens: Tensor) -> Tensor:
        """Self-attention of tokens ``(N, T, channels)``."""
        projected = self.project(tokens).unflatten(-1, (3, self.heads, -1))
        query, key, value = projected.permute(2, 0, 3, 1, 4)
        return self.join(attention(query, key, value).transpose(1, 2).flatten(2))


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer with Glorot's initialisation, as in vision transformers."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
