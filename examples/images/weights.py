"""Trained image models as files: a flow, the dequantization that it was trained with, and more."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from examples.images.models import SAVED_CLASSES
from examples.images.run_errors import SetupError
from examples.images.task import DensityEstimation
from pyro_resflow import checkpoints
from pyro_resflow.flows import ImageFlow

FLOW, DEQUANTIZER = "flow.safetensors", "dequantizer.safetensors"


def save(folder: Path, task: DensityEstimation, notes: Mapping[str, str]) -> None:
    """Save each part of a task, as `flow.safetensors` and so on: all or none.

    Args:
        folder: Where they are written.
        task: What was trained; its `parts` are saved.
        notes: What whoever gets the files will ask.

    Raises:
        NotRebuildableError: For a part of one's own that cannot be made again from a file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder) as name:
        for part, module in task.parts().items():
            checkpoints.save(module, Path(name, f"{part}.safetensors"), notes=notes)
        for file in Path(name).iterdir():
            file.replace(folder / file.name)


def load(folder: Path) -> DensityEstimation:
    """Return what was saved in a folder, in evaluation mode, ready to score images and to draw.

    Args:
        folder: Where `save` has written.

    Raises:
        SetupError: For parts that were not saved together, or a part in the other's place.
        CheckpointError: For a file that is damaged or no part of a task.
        OSError: If one of them is not there.
    """
    notes = [dict(checkpoints.info(folder / name).notes) for name in (FLOW, DEQUANTIZER)]
    if notes[0] != notes[1]:
        raise SetupError(
            f"{folder}: {FLOW} and {DEQUANTIZER} are not of one run, as their notes say; copy "
            "both from where they come from"
        )
    dequantizer = load_part(folder / DEQUANTIZER)
    flow = load_part(folder / FLOW)
    if not isinstance(flow, ImageFlow) or not hasattr(dequantizer, "bins"):
        raise SetupError(
            f"{folder}: {FLOW} is of {type(flow).__name__} and {DEQUANTIZER} of "
            f"{type(dequantizer).__name__}, where a flow of images and a dequantization are "
            "expected"
        )
    return DensityEstimation(flow, dequantizer.bins, dequantizer=lambda *_: dequantizer).eval()


def load_part(path: Path) -> nn.Module:
    """Return the part of a task that is in a file, in evaluation mode."""
    return checkpoints.load(path, classes=SAVED_CLASSES).eval()
