"""The conditions of a measurement."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from examples.conditions import commit, processor

ROOT = Path(__file__).parents[2]
PACKAGES = ("torch", "pyro-ppl", "normflows", "torchflows", "numpy")


def machine(device: torch.device) -> dict[str, str]:
    """Return processor, threads, versions and commit, by name."""
    facts = {
        "commit": commit(),
        "machine": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "device": device.type,
        "python": platform.python_version(),
    }
    if device.type == "cuda":
        facts["device"] = f"cuda ({torch.cuda.get_device_name(device)})"
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    return facts
