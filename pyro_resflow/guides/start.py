"""Defaults shared by all guides: the log-determinant, and a flow that starts near the identity."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from ..logdet import EstimatedInElbo, LogDetEstimator, default_logdet
from ..nn import GatedLipschitzMLP, LipschitzLinear, LipschitzMLP

GUIDE_EXACT_UP_TO = 48
"""Guides score few particles per step, so the full Jacobian is affordable in more dimensions than
in density estimation; and a guide with an exact log-determinant can be used for NeuTra."""

TRAINED_EXACT_UP_TO = 16
"""Number of dimensions up to which a step of SVI takes about as long with the full Jacobian as
with an estimate. In 34 dimensions, with 64 particles, it takes 1.6 times as long."""


def guide_logdet(latent_dim: int) -> LogDetEstimator:
    """The default log-determinant of a guide: the more dimensions, the more is estimated.

    Args:
        latent_dim: size D of the latent vector.

    Returns:
        ``Exact()`` for at most ``TRAINED_EXACT_UP_TO`` dimensions; ``EstimatedInElbo()``, exact
        except where an ELBO is trained, for at most ``GUIDE_EXACT_UP_TO``; else ``Krylov()``.

    Example:
        >>> from pyro_resflow.guides import guide_logdet
        >>> [type(guide_logdet(size)).__name__ for size in (10, 30, 100)]
        ['Exact', 'EstimatedInElbo', 'Krylov']
    """
    if TRAINED_EXACT_UP_TO < latent_dim <= GUIDE_EXACT_UP_TO:
        return EstimatedInElbo()
    return default_logdet(torch.Size((latent_dim,)), exact_up_to=GUIDE_EXACT_UP_TO)


@torch.no_grad()
def shrink_last_layers(module: nn.Module, factor: float = 0.1) -> None:
    """Scale down the last layers of the residual blocks in a module, towards the identity.

    Args:
        module: contains residual blocks, whose networks end in a linear layer.
        factor: factor of the last layers' weights; their biases are set to 0.
    """
    for part in module.modules():
        if isinstance(part, LipschitzMLP | GatedLipschitzMLP):
            layers = part if isinstance(part, LipschitzMLP) else part.branch
            last = cast(LipschitzLinear, layers[-1])
            last.weight.mul_(factor)
            if last.bias is not None:
                last.bias.zero_()
