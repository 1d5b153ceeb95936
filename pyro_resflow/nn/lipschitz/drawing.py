"""The initial values of layers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


@torch.no_grad()
def draw_as_linear(weight: Tensor, bias: Tensor | None) -> None:
    """Draw a weight and a bias as ``nn.Linear`` and ``nn.Conv2d`` do, in place.

    Args:
        weight: output features first.
        bias: one entry per output feature; ``None`` for a layer without a bias.
    """
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    if bias is not None:
        bound = 1 / math.sqrt(weight[0].numel())
        nn.init.uniform_(bias, -bound, bound)
