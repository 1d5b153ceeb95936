"""Saves and loads flows, and compares them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from pyro_resflow.checkpoints import load, save


def again(flow: Any, path: Path, **options: Any) -> Any:
    """The flow, saved and loaded."""
    save(flow, path)
    return load(path, **options)


def check_same_state(one: nn.Module, other: nn.Module) -> None:
    states = one.state_dict(), other.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert tensor.dtype == states[1][name].dtype
        assert torch.equal(tensor, states[1][name])


def parts_of(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """The metadata and the tensors of a file."""
    with safe_open(path, "pt") as file:
        return file.metadata(), load_file(path)
