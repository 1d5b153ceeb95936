"""Workloads: the shape of the events, and a stack of residual blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_resflow.nn import Chain, LipschitzConvNet, LipschitzMLP, SpectralNorm


@dataclass(frozen=True)
class Workload:
    """A stack of residual blocks, and the batch that it is trained on.

    The networks begin with an activation, as in normflows.

    Args:
        name: name in the tables.
        event_shape: ``(C, H, W)`` for convolutions, ``(D,)`` for a perceptron.
        hidden: widths of each network's hidden layers.
        blocks: number of residual blocks.
        batch: samples in a batch.
        kernel_sizes: kernel sizes of each network's convolutions.
        coefficient: Lipschitz constant of each linear layer.
    """

    name: str
    event_shape: tuple[int, ...]
    hidden: tuple[int, ...]
    blocks: int
    batch: int
    kernel_sizes: tuple[int, ...] = (3, 1, 3)
    coefficient: float = 0.98

    @property
    def is_image(self) -> bool:
        """Whether the networks are convolutional."""
        return len(self.event_shape) == 3

    @property
    def widths(self) -> list[int]:
        """Features before, between and after a network's linear layers."""
        return [self.event_shape[0], *self.hidden, self.event_shape[0]]

    @property
    def input_bytes(self) -> int:
        """Size of one block's input batch in float32."""
        return 4 * self.batch * math.prod(self.event_shape)

    def miniature(self) -> Workload:
        """One small block of the same kind, on little data."""
        event_shape = (self.event_shape[0], *[8] * (len(self.event_shape) - 1))
        hidden = (8,) * len(self.hidden)
        return replace(self, event_shape=event_shape, hidden=hidden, blocks=1, batch=2)

    def network(self) -> Chain:
        """A new network of one block."""
        norm = SpectralNorm(self.coefficient)
        if not self.is_image:
            return LipschitzMLP(self.event_shape[0], self.hidden, norm=norm, preactivation=True)
        return LipschitzConvNet(
            self.event_shape, self.hidden, kernel_sizes=self.kernel_sizes, norm=norm
        )

    def networks(self) -> list[Chain]:
        """New networks of all blocks."""
        return [self.network() for _ in range(self.blocks)]

    def data(self) -> Tensor:
        """A batch of standard normal noise, ``(batch, *event_shape)``."""
        return torch.randn(self.batch, *self.event_shape)
