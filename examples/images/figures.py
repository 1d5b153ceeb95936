"""Pictures of flows of images, as matplotlib figures."""

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torchvision.transforms.v2.functional import InterpolationMode, resize
from torchvision.utils import make_grid

from examples.images import exploration
from examples.images.task import HeldOut
from pyro_resflow.distributions import Dequantized
from pyro_resflow.flows import ImageFlow

PIXELS_PER_IMAGE = 64


def visible(images: Tensor) -> Tensor:
    """Show images of any number of channels in grey or in colour.

    Of three and more channels, the first three are the colours. Each other channel becomes a grey
    image at their right.

    Args:
        images: Shape `(N, C, H, W)`.

    Returns:
        The images, with 1 or 3 channels.
    """
    channels = images.shape[1]
    if channels in (1, 3):
        return images
    colours = [images[:, :3]] if channels > 3 else []
    greys = images[:, 3 * len(colours) :].split(1, dim=1)
    return torch.cat([*colours, *(grey.expand(-1, 3, -1, -1) for grey in greys)], dim=-1)


def grid(images: Tensor, columns: int) -> Tensor:
    """Arrange images in [0, 1] in one picture `(3, H, W)`; enlarge small ones unsmoothed."""
    images = visible(images)
    height, width = images.shape[-2:]
    factor = max(1, PIXELS_PER_IMAGE // height)
    enlarged = resize(images, [factor * height, factor * width], InterpolationMode.NEAREST)
    return make_grid(enlarged.clamp(0, 1), nrow=columns, padding=4, pad_value=1.0)


def square(images: Tensor) -> Tensor:
    """Arrange images in [0, 1] in a square picture `(3, H, W)`."""
    return grid(images, columns=max(1, round(len(images) ** 0.5)))


def interpolation(
    flow: ImageFlow,
    first: Tensor,
    second: Tensor,
    steps: int = 9,
    path: exploration.Path = exploration.spherical,
) -> Figure:
    """Show interpolations, one row for each pair; see `exploration.interpolate`."""
    between = exploration.interpolate(flow, first, second, steps, path)
    return rows_of({"": between.transpose(0, 1).flatten(0, 1)}, columns=steps)


def temperatures(
    flow: ImageFlow, temperatures: Sequence[float] = (0.0, 0.5, 0.7, 0.9, 1.0), number: int = 10
) -> Figure:
    """Show samples from one noise at several temperatures, one row for each."""
    samples = exploration.sample_at(flow, temperatures, number)
    titles = [f"temperature {temperature:g}" for temperature in temperatures]
    return rows_of(dict(zip(titles, samples, strict=True)), columns=number)


def reconstructions(flow: ImageFlow, images: Tensor, bins: int) -> Figure:
    """Show integer images, their reconstructions by `flow.inv` and `flow`, and the difference."""
    result = exploration.reconstruct(flow, (images + 0.5) / bins)
    changed = (bins * result.returned).floor() != images
    largest = result.error.max()
    rows = {
        "original": result.images,
        "reconstruction: flow(flow.inv(x))": result.returned,
        f"difference, scaled to its maximum of {largest:.1e}; "
        f"pixels with another grey level: {changed.sum()} of {changed.numel()}": (
            result.error / largest.clamp(min=torch.finfo(largest.dtype).tiny)
        ),
    }
    return rows_of(rows, columns=len(images))


def ranking(distribution: Dequantized, images: Tensor, number: int = 10, draws: int = 1) -> Figure:
    """Show the integer images of highest and lowest likelihood, with their bits/dim."""
    ranked = exploration.rank(distribution, images, draws)
    number = min(number, len(images))
    ends = {"highest": slice(number), "lowest": slice(len(images) - number, None)}
    rows = {
        f"{end} likelihood: {ranked.bits[part][0]:.2f} to {ranked.bits[part][-1]:.2f} bits/dim": (
            ranked.images[part] / (distribution.bins - 1)
        )
        for end, part in ends.items()
    }
    return rows_of(rows, columns=number)


def learning_curve(log_folder: Path, held_out: HeldOut) -> Figure:
    """Show bits/dim against the step, from the TensorBoard log, which covers resumed runs."""
    log = EventAccumulator(str(log_folder), size_guidance={"scalars": 0}).Reload()
    curves = {"training": "bits/train_epoch", "validation": "bits/validation"}
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    for label, tag in curves.items():
        if tag in log.Tags()["scalars"]:
            events = log.Scalars(tag)
            axis.plot([e.step for e in events], [e.value for e in events], label=label)
    axis.axhline(held_out.mean, color="grey", linestyle="--", label="test, at the end")
    axis.set(xlabel="step", ylabel="bits/dim")
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


def rows_of(rows: dict[str, Tensor], columns: int) -> Figure:
    """Show rows of images in [0, 1] under their titles, with a number of columns."""
    pictures = {title: grid(images, columns) for title, images in rows.items()}
    heights = [picture.shape[-2] for picture in pictures.values()]
    inch = max(picture.shape[-1] for picture in pictures.values()) / 10
    titled = sum(0.3 for title in rows if title)
    figure = Figure(figsize=(10, sum(heights) / inch + titled), layout="constrained")
    axes = figure.subplots(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (title, picture) in zip(axes, pictures.items(), strict=True):
        axis.imshow(picture.permute(1, 2, 0).numpy(force=True))
        axis.set_title(title, fontsize=10, loc="left")
        axis.axis("off")
    return figure
