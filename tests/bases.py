"""Base distributions of the flows in tests."""

from __future__ import annotations

import pyro.distributions as dist
import torch


def standard(size: int) -> dist.TorchDistribution:
    """Standard normal noise, one event of ``size`` entries."""
    return dist.Normal(torch.zeros(size), 1.0).to_event(1)
