"""Which version of torch the tests run under."""

from __future__ import annotations

import torch
from torch.torch_version import TorchVersion


def torch_is(least: str) -> bool:
    """Whether torch is at least of a version."""
    return TorchVersion(torch.__version__) >= least
