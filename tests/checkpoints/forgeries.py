"""The reference implementation's files, and forgeries of them."""

from __future__ import annotations

import argparse
import pickle
import sys
import types
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_resflow.checkpoints.opening import reading
from pyro_resflow.checkpoints.reference.records import StandIn
from pyro_resflow.checkpoints.reference.torch_files import TorchFile

REFERENCE = Path(__file__).parents[1] / "data" / "reference"
NAMES = ["imagenet64_tiny", "mnist_tiny"]


def reference_file(name: str) -> Path:
    """A file that the reference implementation has written."""
    return REFERENCE / f"{name}.pth"


def reference_values(name: str) -> dict[str, Tensor]:
    """What the reference implementation computes from it."""
    with np.load(REFERENCE / f"{name}.npz") as values:
        return {key: torch.from_numpy(values[key]) for key in values}


@contextmanager
def torch_file(path: Path) -> Iterator[TorchFile]:
    """What a file of ``torch.save`` holds, as it is read here."""
    with reading(path) as file:
        yield TorchFile(file)


def contents(name: str) -> dict[str, Any]:
    """What such a file holds, as plain tensors and options: no class of the reference's in it."""
    with torch_file(reference_file(name)) as file:
        saved, average = file.content, file.content["ema"].state["shadow_params"]
        return {
            "state_dict": {
                k: file.tensor(each).clone() for k, each in saved["state_dict"].items()
            },
            "args": argparse.Namespace(**saved["args"].state),
            "ema": {k: file.tensor(each).clone() for k, each in average.items()},
            "test_bpd": saved["test_bpd"],
        }


def forge(
    path: Path, change: Callable[[dict[str, Any]], None], name: str = "mnist_tiny", **options: Any
) -> Path:
    """Write a file like the reference's, with a change to its contents."""
    saved = contents(name)
    change(saved)
    with modules_named("resflows"):
        average = sys.modules["resflows.utils"].ExponentialMovingAverage()
        average.shadow_params = saved.pop("ema")
        torch.save({**saved, "ema": average}, path, **options)
    return path


@contextmanager
def modules_named(package: str) -> Iterator[None]:
    """The reference's package, as far as its files name it, for ``torch.save``."""
    utils = types.ModuleType(f"{package}.utils")
    utils.ExponentialMovingAverage = type(
        "ExponentialMovingAverage", (), {"__module__": utils.__name__}
    )
    resflow = types.ModuleType(f"{package}.resflow")
    resflow.ResidualFlow = type("ResidualFlow", (nn.Module,), {"__module__": resflow.__name__})
    added = {package: types.ModuleType(package), utils.__name__: utils, resflow.__name__: resflow}
    sys.modules.update(added)
    try:
        yield
    finally:
        for module in added:
            del sys.modules[module]


def write_old(path: Path, name: str) -> Path:
    """Write such a file as torch 1.0 did, with the package's old name and a module inside."""
    saved = contents(name)
    with modules_named("lib"):
        average = sys.modules["lib.utils"].ExponentialMovingAverage()
        average.module = sys.modules["lib.resflow"].ResidualFlow()
        average.module.transforms = nn.Sequential(nn.Linear(2, 2), nn.ELU())
        average.shadow_params = saved.pop("ema")
        old = {"_use_new_zipfile_serialization": False}
        torch.save({**saved, "ema": average}, path, **old)
    return path


def rewrite(source: Path, target: Path, change: Callable[[bytes], bytes]) -> Path:
    """Copy a file of torch.save with a change to the pickle inside."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(content) if name.endswith("data.pkl") else content)
    return target


class Calls:
    """Asks, when it is unpickled, for a call."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def zipped(path: Path, data: bytes) -> Path:
    """Write a file as torch.save does, around a pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3")
    return path


def legacy(path: Path, data: bytes) -> Path:
    """Write a file as torch 1.0 did, around a pickle."""
    header = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    parts = [pickle.dumps(part, protocol=2) for part in header]
    path.write_bytes(b"".join([*parts, data, pickle.dumps([], protocol=2)]))
    return path


def is_stand_in(value: object, name: str) -> bool:
    """Whether an object stands in for one of a class of this name."""
    return isinstance(value, StandIn) and type(value).__name__ == name
