"""Which versions of torch and torchvision the tests run under."""

from __future__ import annotations

from importlib.metadata import version

import torch
from torch.torch_version import TorchVersion


def torch_is(least: str) -> bool:
    """Whether torch is at least of a version."""
    return TorchVersion(torch.__version__) >= least


def torchvision_is(least: str) -> bool:
    """Whether torchvision is at least of a version."""
    return TorchVersion(version("torchvision")) >= least
