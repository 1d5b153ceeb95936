"""The table in a run's report: data, model, training, machine and versions."""

import math
import platform
from collections.abc import Mapping

import lightning
import pyro
import torch
from lightning import Trainer

import pyro_resflow
from examples.conditions import Conditions
from examples.images.data import ImageData
from examples.images.task import DensityEstimation


def facts(
    trainer: Trainer, task: DensityEstimation, conditions: Conditions, seconds: float
) -> Mapping[str, str]:
    """Return the rows of the table by their title.

    Args:
        trainer: The trainer that has tested the task.
        task: The task.
        conditions: The command, commit and machine of the run.
        seconds: Duration of the training; 0 if it is not known.
    """
    rows = {
        "Data": describe_data(trainer.datamodule),
        "Uniform distribution": f"{uniform_bits(task.bins):.3f} bits/dim, the score of a model "
        f"without training (log2 of {task.bins} grey levels)",
        "Model": describe_model(task),
        "Training": f"{trainer.global_step:,} steps in {duration(seconds)}" if seconds else "",
        "Machine": f"{conditions.machine}, {conditions.cores} cores, "
        f"threads: {conditions.threads}, graphics card: {conditions.accelerator}",
        "Versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
        "Commit": conditions.commit,
    }
    return {title: text for title, text in rows.items() if text}


def uniform_bits(bins: int) -> float:
    """Return the bits/dim of the uniform distribution over all images, log2 of the grey levels."""
    return math.log2(bins)


def describe_data(data: ImageData) -> str:
    """Describe the source of the images and their division."""
    parts = {
        "training": data.training_images,
        "validation": data.validation_images,
        "test": data.test_images,
    }
    channels, height, width = data.event_shape
    counted = ", ".join(f"{len(images):,} {name}" for name, images in parts.items())
    return f"{data.source}: {channels}x{height}x{width}, {data.bins} grey levels; {counted} images"


def describe_model(task: DensityEstimation) -> str:
    """Return the classes of the flow and the dequantization, and their number of parameters."""
    parameters = sum(parameter.numel() for parameter in task.parameters())
    flow, dequantizer = (type(part).__name__ for part in (task.flow, task.dequantizer))
    return f"{flow}, {dequantizer}; {parameters:,} parameters"


def duration(seconds: float) -> str:
    """Return a duration in hours, minutes and seconds, as `1 h 02 min 03 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min {rest:02} s"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def versions() -> Mapping[str, str]:
    """Return the versions of the libraries, by name."""
    return {
        "pyro_resflow": pyro_resflow.__version__,
        "Python": platform.python_version(),
        "torch": str(torch.__version__),
        "Pyro": pyro.__version__,
        "Lightning": lightning.__version__,
    }
