"""Draw images from a flow in a file of weights.

The picture is written beside the weights, as `flow_samples.png`, unless `--output` gives another
path. The description of the flow in the file is printed.

    python -m examples.images.sample runs/demo/flow.safetensors
    python -m examples.images.sample runs/demo/flow.safetensors --temperature 0.8
"""

import sys
from pathlib import Path

import torch
from torchvision.utils import save_image

from examples.images.exploration import sample_at
from examples.images.figures import square
from examples.images.run_errors import SetupError
from examples.images.storage import check_writable
from examples.images.weights import load_part
from examples.parsing import command_line
from pyro_resflow import checkpoints
from pyro_resflow.flows import ImageFlow


def main(
    weights: Path,
    number: int = 64,
    temperature: float = 1.0,
    seed: int = 0,
    output: Path | None = None,
) -> None:
    """Draw images and write them as one picture.

    Args:
        weights: A file of `pyro_resflow.checkpoints.save`, such as a run's `flow.safetensors`.
        number: Number of images.
        temperature: Standard deviation of the noise.
        seed: Seed of the noise.
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
    images = sample_at(flow, [temperature], number)[0].clamp(0, 1)
    save_image(square(images), picture)
    print(f"wrote {picture}")


def load_flow(weights: Path) -> ImageFlow:
    """Load the flow of images in a file, and print its description.

    Raises:
        SetupError: If the file is missing or does not hold a flow of images.
    """
    try:
        print(checkpoints.info(weights))
        flow = load_part(weights)
    except (checkpoints.CheckpointError, OSError) as error:
        raise SetupError(f"weights: {error}") from error  # the error names the file
    if not isinstance(flow, ImageFlow):
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
