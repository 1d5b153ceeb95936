"""Trained image models as files: the flow, its dequantization, and other modules of a task."""

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
    """Save all modules of a task, as `flow.safetensors` and so on, or none of them.

    Args:
        folder: The folder of the files.
        task: The task; its `parts` are saved.
        notes: Notes on the data, the result and the run, stored in each file.

    Raises:
        NotRebuildableError: If a module cannot be rebuilt from a file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder) as name:
        for part, module in task.parts().items():
            checkpoints.save(module, Path(name, f"{part}.safetensors"), notes=notes)
        for file in Path(name).iterdir():
            file.replace(folder / file.name)


def load(folder: Path) -> DensityEstimation:
    """Load the flow and the dequantization in a folder as a task, in evaluation mode.

    Args:
        folder: The folder that `save` has written to.

    Raises:
        SetupError: If the files were not saved together, or are exchanged.
        CheckpointError: If a file is damaged or does not hold a module.
        OSError: If a file is missing.
    """
    notes = [dict(checkpoints.info(folder / name).notes) for name in (FLOW, DEQUANTIZER)]
    if notes[0] != notes[1]:
        raise SetupError(
            f"{folder}: {FLOW} and {DEQUANTIZER} are from different runs, as their notes show; "
            "copy both files of one run"
        )
    dequantizer = load_part(folder / DEQUANTIZER)
    flow = load_part(folder / FLOW)
    if not isinstance(flow, ImageFlow) or not hasattr(dequantizer, "bins"):
        raise SetupError(
            f"{folder}: expected a flow of images in {FLOW} and a dequantization in "
            f"{DEQUANTIZER}, got {type(flow).__name__} and {type(dequantizer).__name__}"
        )
    return DensityEstimation(flow, dequantizer.bins, dequantizer=lambda *_: dequantizer).eval()


def load_part(path: Path) -> nn.Module:
    """Load one module of a task from a file, in evaluation mode."""
    return checkpoints.load(path, classes=SAVED_CLASSES).eval()
