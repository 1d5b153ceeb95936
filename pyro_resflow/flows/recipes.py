"""Recipes build the network of a residual block, given the event shape by the flow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ..arguments import checked
from ..nn import (
    Activation,
    Chain,
    CLipSwish,
    LipschitzConvNet,
    LipschitzDenseNet,
    LipschitzMLP,
    LipSwish,
    SpectralNorm,
)


class NetworkRecipe(Protocol):
    """Builds the network of one residual block."""

    def __call__(self, event_shape: torch.Size, *, preactivation: bool) -> Any:
        """Build the network for an event shape, with or without an activation in front."""


@checked()
@dataclass(frozen=True)
class ConvBlock:
    """Recipe of the published block: convolutions 3x3, 1x1, 3x3 with an activation before each.

    Args:
        hidden_channels: width of both hidden layers.
        kernel_sizes: one size per convolution.
        activation: builds one activation.
        coefficient: Lipschitz constant of each convolution.

    Example:
        >>> import torch
        >>> from pyro_resflow.flows import ConvBlock
        >>> net = ConvBlock(16)(torch.Size([3, 8, 8]), preactivation=True)
        >>> net(torch.randn(7, 3, 8, 8)).shape
        torch.Size([7, 3, 8, 8])
    """

    hidden_channels: int = 512
    kernel_sizes: Sequence[int] = (3, 1, 3)
    activation: type[Activation] | Callable[[], Activation] = LipSwish
    coefficient: float = 0.98

    def __call__(self, event_shape: torch.Size, *, preactivation: bool) -> Chain:
        return LipschitzConvNet(
            event_shape,
            [self.hidden_channels] * (len(self.kernel_sizes) - 1),
            kernel_sizes=self.kernel_sizes,
            activation=self.activation,
            norm=SpectralNorm(self.coefficient),
            preactivation=preactivation,
        )


@checked()
@dataclass(frozen=True)
class DenseNetBlock:
    """Recipe of the i-DenseNet block: densely connected layers, no activation in front.

    Args:
        depth: number of dense layers.
        growth: number of features that each dense layer adds.
        activation: builds one activation from the feature dimension.
        coefficient: Lipschitz constant of each linear layer.
        stem: features of a linear layer before the dense layers; by default there is none.
    """

    depth: int = 3
    growth: int = 172
    activation: type[Activation] | Callable[[int], Activation] = CLipSwish
    coefficient: float = 0.98
    stem: int | None = None

    def __call__(self, event_shape: torch.Size, *, preactivation: bool) -> Chain:
        return LipschitzDenseNet(
            event_shape,
            depth=self.depth,
            growth=self.growth,
            stem=self.stem,
            activation=self.activation,
            norm=SpectralNorm(self.coefficient),
        )


@checked()
@dataclass(frozen=True)
class MLPBlock:
    """Recipe of a fully connected block for vectors.

    Args:
        hidden_dims: widths of the hidden layers.
        activation: builds one activation.
        coefficient: Lipschitz constant of each linear layer.
    """

    hidden_dims: Sequence[int] = (128, 128)
    activation: type[Activation] | Callable[[], Activation] = LipSwish
    coefficient: float = 0.98

    def __call__(self, event_shape: torch.Size, *, preactivation: bool) -> Chain:
        return LipschitzMLP(
            event_shape.numel(),
            self.hidden_dims,
            activation=self.activation,
            norm=SpectralNorm(self.coefficient),
            preactivation=preactivation,
        )
