"""Draw images from a flow whose weights lie in a file.

What the file says of the flow is printed too.

    python -m examples.images.sample runs/demo/flow.safetensors
    python -m examples.images.sample runs/demo/flow.safetensors --temperature 0.8
"""

from pathlib import Path

import torch
from jsonargparse import auto_cli
from torchvision.utils import save_image

from examples.images.exploration import sample_at
from examples.images.figures import square
from examples.images.weights import load_part
from pyro_resflow import checkpoints


def main(
    weights: Path,
    number: int = 64,
    temperature: float = 1.0,
    seed: int = 0,
    output: Path = Path("samples.png"),
) -> None:
    """Draw images and write them as one picture.

    Args:
        weights: A file of `pyro_resflow.checkpoints.save`, such as a run's `flow.safetensors`.
        number: Number of images.
        temperature: Standard deviation of the noise that is turned into images.
        seed: Of the noise.
        output: Where the picture is written.
    """
    print(checkpoints.info(weights))
    flow = load_part(weights)
    torch.manual_seed(seed)
    images = sample_at(flow, [temperature], number)[0].clamp(0, 1)
    output.parent.mkdir(parents=True, exist_ok=True)
    save_image(square(images), output)
    print(f"wrote {output}")


if __name__ == "__main__":
    auto_cli(main)
