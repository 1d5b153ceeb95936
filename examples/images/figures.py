"""The pictures of a report."""

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from pyro.distributions import TransformModule
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torchvision.transforms.v2.functional import InterpolationMode, resize
from torchvision.utils import make_grid, save_image

from examples.images.task import HeldOut

PIXELS_PER_IMAGE = 64


def grid(images: Tensor, columns: int) -> Tensor:
    """Lay out images in [0, 1] as one picture, small ones enlarged without smoothing."""
    height, width = images.shape[-2:]
    factor = max(1, PIXELS_PER_IMAGE // height)
    enlarged = resize(images, [factor * height, factor * width], InterpolationMode.NEAREST)
    return make_grid(enlarged, nrow=columns, padding=4, pad_value=1.0)


def save_samples(path: Path, samples: Tensor, bins: int) -> None:
    """Save integer samples as a square of images."""
    columns = max(1, round(len(samples) ** 0.5))
    save_image(grid(samples.float() / (bins - 1), columns), path)


@torch.no_grad()
def save_reconstructions(path: Path, flow: TransformModule, images: Tensor, bins: int) -> None:
    """Save originals, what `flow.inv` and then `flow` make of them, and the difference."""
    centres = (images + 0.5) / bins
    # The transform remembers its last input by identity; a clone makes it compute.
    returned = flow(flow.inv(centres).clone())
    difference = (returned - centres).abs()
    changed = (bins * returned).floor() != images
    rows = {
        "original": centres,
        "there and back: flow(flow.inv(x))": returned,
        f"difference, enlarged to fill the scale: at most {difference.max():.1e}; "
        f"pixels that changed their level: {changed.sum()} of {changed.numel()}": (
            difference / difference.max().clamp(min=torch.finfo(difference.dtype).tiny)
        ),
    }
    _save_rows(path, rows)


def _save_rows(path: Path, rows: dict[str, Tensor]) -> None:
    figure, axes = plt.subplots(len(rows), 1, figsize=(10, 1.5 * len(rows)), layout="constrained")
    for axis, (title, images) in zip(axes, rows.items(), strict=True):
        axis.imshow(
            grid(images.clamp(0, 1), columns=len(images)).permute(1, 2, 0).numpy(force=True)
        )
        axis.set_title(title, fontsize=10, loc="left")
        axis.axis("off")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def save_learning_curve(path: Path, log_folder: Path, held_out: HeldOut) -> None:
    """Save bits/dim against the step, read from the TensorBoard log so that resumes count."""
    log = EventAccumulator(str(log_folder), size_guidance={"scalars": 0}).Reload()
    curves = {"training": "bits/train_epoch", "validation": "bits/validation"}
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for label, tag in curves.items():
        if tag in log.Tags()["scalars"]:
            events = log.Scalars(tag)
            axis.plot([e.step for e in events], [e.value for e in events], label=label)
    axis.axhline(held_out.bits_per_dim, color="grey", linestyle="--", label="test, at the end")
    axis.set(xlabel="step", ylabel="bits/dim")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
