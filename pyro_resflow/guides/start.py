"""What every guide starts with: a log-determinant, and a flow near the identity."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from ..logdet import Exact, Krylov
from ..nn import LipschitzLinear, LipschitzMLP
from ..transforms.residual import LogDet

LARGEST_EXACT_DIM = 16
"""Up to this many dimensions the log-determinant itself costs no more than an estimate."""


def default_logdet(latent_dim: int) -> LogDet:
    """The log-determinant of a guide: exact in few dimensions, an unbiased estimate in many.

    Args:
        latent_dim: size D of the latent vector.
    """
    return Exact() if latent_dim <= LARGEST_EXACT_DIM else Krylov()


@torch.no_grad()
def shrink_last_layers(module: nn.Module, factor: float = 0.1) -> None:
    """Bring the residual blocks inside a module near the identity.

    Args:
        module: holds residual blocks, whose networks end in a linear layer.
        factor: what the weights of the last layers are multiplied by; their biases become 0.
    """
    for part in module.modules():
        if isinstance(part, LipschitzMLP):
            last = cast(LipschitzLinear, part[-1])
            last.weight.mul_(factor)
            if last.bias is not None:
                last.bias.zero_()
