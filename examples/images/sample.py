"""Draw images from a flow in a file of weights.

The picture is written beside the weights, as `flow_samples.png`, unless `--output` gives another
path. The description of the flow in the file is printed.

    python -m examples.images.sample runs/demo/flow.safetensors
    python -m examples.images.sample runs/demo/flow.safetensors --temperature 0.8

A flow that was trained with labels draws a row for each class, or images of one class only:

    python -m examples.images.sample runs/classes/flow.safetensors --label 3
"""

import sys
from pathlib import Path

import torch
from torch import Tensor
from torchvision.utils import save_image

from examples.images.exploration import sample_at
from examples.images.figures import grid, square
from examples.images.run_errors import SetupError
from examples.images.storage import check_writable
from examples.images.weights import load_part
from examples.parsing import command_line
from pyro_resflow import checkpoints
from pyro_resflow.flows import ConditionalImageFlow, ImageFlow


def main(
    weights: Path,
    number: int = 64,
    temperature: float = 1.0,
    seed: int = 0,
    label: int | None = None,
    output: Path | None = None,
) -> None:
    """Draw images and write them as one picture.

    Args:
        weights: A file of `pyro_resflow.checkpoints.save`, such as a run's `flow.safetensors`.
        number: Number of images.
        temperature: Standard deviation of the noise.
        seed: Seed of the noise.
        label: Class of the images, for a flow that was trained with labels; by default a row of
            images for each class.
        output: File of the picture; by default beside the weights.
    """
    if number < 1:
        raise SetupError(f"number: expected at least 1, got {number}")
    if temperature < 0:
        raise SetupError(f"temperature: expected 0 or more, got {temperature}")
    picture = output if output is not None else weights.with_name(f"{weights.stem}_samples.png")
    flow = load_flow(weights)
    check_writable("output", picture.parent)
    torch.manual_seed(seed)
    save_image(draw(flow, number, temperature, label), picture)
    print(f"wrote {picture}")


def draw(
    flow: ImageFlow | ConditionalImageFlow, number: int, temperature: float, label: int | None
) -> Tensor:
    """Draw images as one picture, see `main`; of all classes, one row for each."""
    if isinstance(flow, ImageFlow):
        if label is not None:
            raise SetupError(f"label {label}: the flow was trained without labels; leave it out")
        return square(sample_at(flow, [temperature], number)[0])
    classes = flow.num_classes
    if classes is None:
        raise SetupError("weights: the flow takes a vector as its context, not a label")
    if label is not None and not 0 <= label < classes:
        raise SetupError(f"label: expected 0 .. {classes - 1}, got {label}")
    if label is not None:
        return square(sample_at(flow.condition(torch.tensor(label)), [temperature], number)[0])
    columns = max(1, number // classes)
    labels = torch.arange(classes).repeat_interleave(columns)
    return grid(sample_at(flow.condition(labels), [temperature], number)[0], columns)


def load_flow(weights: Path) -> ImageFlow | ConditionalImageFlow:
    """Load the flow of images in a file, and print its description.

    Raises:
        SetupError: If the file is missing or does not hold a flow of images.
    """
    try:
        print(checkpoints.info(weights))
        flow = load_part(weights)
    except (checkpoints.CheckpointError, OSError) as error:
        raise SetupError(f"weights: {error}") from error  # the error names the file
    if not isinstance(flow, ImageFlow | ConditionalImageFlow):
        raise SetupError(
            f"weights {str(weights)!r}: the file holds a {type(flow).__name__}, not a flow of "
            "images; a run writes its flow to flow.safetensors"
        )
    return flow


if __name__ == "__main__":
    try:
        command_line(main)
    except SetupError as error:
        sys.exit(f"error: {error}")
