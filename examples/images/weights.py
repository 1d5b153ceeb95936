"""Trained image models as files: a flow, the dequantization that it was trained with, and more."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from examples.images import models
from examples.images.task import DensityEstimation
from pyro_resflow import checkpoints

FLOW, DEQUANTIZER = "flow.safetensors", "dequantizer.safetensors"

OWN_CLASSES = (
    models.Features,
    models.FlowPlusPlus,
    models.GatedStep,
    models.Glow,
    models.VariationalDequantization,
)
"""Those of the examples that a model may be made of, beside the package's."""


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
    """Return what was saved in a folder, in evaluation mode, ready to score images and to draw."""
    dequantizer = load_part(folder / DEQUANTIZER)
    flow = load_part(folder / FLOW)
    return DensityEstimation(flow, dequantizer.bins, dequantizer=lambda *_: dequantizer).eval()


def load_part(path: Path) -> nn.Module:
    """Return the part of a task that is in a file, in evaluation mode."""
    return checkpoints.load(path, classes=OWN_CLASSES).eval()
