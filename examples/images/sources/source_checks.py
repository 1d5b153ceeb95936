"""Checks of a source and its images before training begins."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from examples.images.run_errors import SetupError
from examples.images.sources.base import Portion, Source
from pyro_resflow.distributions import as_signed

CHECKED_IMAGES = 64
"""Images to check in each portion: enough to find a wrong kind, few enough to read from files."""

REMEDY = (
    "a Source returns two portions, training and test, of (image,) or (image, label): images of "
    "integers, such as torch.uint8, of shape (C, H, W) with values from 0 to bins - 1"
)


def check_source(source: Source) -> None:
    """Raise a `SetupError` unless a source declares the shape and grey levels of its images."""
    name = type(source).__name__
    shape = getattr(source, "event_shape", None)
    if not (
        isinstance(shape, Sequence)
        and len(shape) == 3
        and all(_is_positive_integer(n) for n in shape)
    ):
        raise SetupError(
            f"data.source {name}: event_shape: expected the channels, height and width of an "
            f"image, such as (1, 28, 28), got {shape}"
        )
    if not (_is_positive_integer(source.bins) and source.bins > 1):
        raise SetupError(
            f"data.source {name}: bins: expected the number of grey levels, such as 256, got "
            f"{source.bins}"
        )


def load_checked(source: Source) -> tuple[Portion, Portion]:
    """Return the portions of a source.

    Raises:
        SetupError: If a portion's images are not those that the source declares.
    """
    portions = source.load()
    if not (isinstance(portions, Sequence) and len(portions) == 2):
        raise SetupError(
            f"data.source {type(source).__name__}: load() did not return a pair; {REMEDY}"
        )
    for kind, portion in zip(("training", "test"), portions, strict=True):
        check_portion(source, kind, portion)
    training, test = portions
    return training, test


def check_portion(source: Source, kind: str, portion: Portion) -> None:
    """Raise a `SetupError` unless a portion's images are those that the source declares."""
    where = f"data.source {type(source).__name__}: the {kind} portion"
    if not len(portion):
        raise SetupError(f"{where} is empty; {REMEDY}")
    step = -(-len(portion) // CHECKED_IMAGES)
    with isolate_rng():  # a portion may crop at random, which must not change the run's numbers
        for index in range(0, len(portion), step):
            fault = _fault(source, portion[index])
            if fault:
                raise SetupError(f"{where} has {fault} (item {index}); {REMEDY}")


def _fault(source: Source, item: Any) -> str:
    """Describe the fault of an item of a portion; empty if it has none."""
    if not (isinstance(item, tuple | list) and item and isinstance(item[0], Tensor)):
        return f"items of type {type(item).__name__}, not (image,) or (image, label)"
    image = item[0]
    if image.is_floating_point() or image.is_complex():
        return f"images of {str(image.dtype).removeprefix('torch.')}"
    if tuple(image.shape) != tuple(source.event_shape):
        return f"an image of shape {tuple(image.shape)}, not event_shape {source.event_shape}"
    levels = as_signed(image)  # torch has no minimum of 16 bits without a sign
    low, high = int(levels.min()), int(levels.max())
    if low < 0 or high >= source.bins:
        return f"pixels from {low} to {high}, but bins is {source.bins}"
    return ""


def _is_positive_integer(number: Any) -> bool:
    return isinstance(number, int) and number > 0
