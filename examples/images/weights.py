"""Trained image models as files: a flow and the dequantization that it was trained with."""

from collections.abc import Mapping
from pathlib import Path

from pyro.distributions import TransformModule
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
    """Save the flow as `flow.safetensors` and the dequantization beside it.

    Args:
        folder: Where both are written.
        task: What was trained.
        notes: What whoever gets the files will ask.

    Raises:
        NotRebuildableError: For a flow of one's own that cannot be made again from a file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints.save(task.flow, folder / FLOW, notes=notes)
    checkpoints.save(task.dequantizer, folder / DEQUANTIZER, notes=notes)


def load_flow(path: Path) -> TransformModule:
    """Return the flow in a file, in evaluation mode."""
    return _load(path)


def load(folder: Path, bins: int) -> DensityEstimation:
    """Return what was saved in a folder, in evaluation mode, ready to score images and to draw.

    Args:
        folder: Where it was saved.
        bins: Number of grey levels of the images.
    """
    task = DensityEstimation(load_flow(folder / FLOW), bins)
    task.dequantizer = _load(folder / DEQUANTIZER)
    return task.eval()


def _load(path: Path) -> nn.Module:
    return checkpoints.load(path, classes=OWN_CLASSES).eval()
