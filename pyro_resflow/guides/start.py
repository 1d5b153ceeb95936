"""What every guide starts with: a log-determinant, and a flow near the identity."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from ..logdet import LogDetEstimator, default_logdet
from ..nn import LipschitzLinear, LipschitzMLP

GUIDE_EXACT_UP_TO = 16
"""Guides score few particles at once, so that the whole Jacobian is cheap in more dimensions than
in density estimation; and with it a trained guide is ready for NeuTra."""


def guide_logdet(latent_dim: int) -> LogDetEstimator:
    """The log-determinant of a guide: exact in few dimensions, an unbiased estimate in many.

    Args:
        latent_dim: size D of the latent vector.
    """
    return default_logdet(torch.Size((latent_dim,)), exact_up_to=GUIDE_EXACT_UP_TO)


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
