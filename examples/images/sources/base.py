"""The base class of sources, and functions that split and change portions."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

Portion: TypeAlias = Dataset[tuple[Tensor, ...]]
"""A sequence of `(image,)` or `(image, label)`: the image uint8 `(C, H, W)`, the label int64."""


class Source(ABC):
    """Integer images of one shape, and labels where there are classes.

    Attributes:
        event_shape: Channels, height and width of an image.
        bins: Number of grey levels; values are 0 .. bins - 1.
        classes: Number of classes, labelled 0 .. classes - 1; 0 if images have no label.
    """

    event_shape: tuple[int, int, int]
    bins: int = 256
    classes: int = 0

    def __str__(self) -> str:
        return type(self).__name__

    @abstractmethod
    def load(self) -> tuple[Portion, Portion]:
        """Return the training and the test portion; download or unpack missing files."""


class Mapped(Dataset[tuple[Tensor, ...]]):
    """A portion that applies a function to each image when it is fetched.

    Args:
        portion: The images.
        function: Maps an image to an image.
    """

    def __init__(self, portion: Portion, function: Callable[[Tensor], Tensor]) -> None:
        self.portion = portion
        self.function = function

    def __len__(self) -> int:
        return len(self.portion)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        image, *label = self.portion[index]
        return self.function(image), *label


class InMemory(Source):
    """The images of a source, read once and kept in memory.

    Args:
        source: The source of the images; worthwhile for one that computes them.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.event_shape = source.event_shape
        self.bins = source.bins
        self.classes = source.classes
        self._portions: tuple[Portion, Portion] | None = None

    def __str__(self) -> str:
        return str(self.source)

    def load(self) -> tuple[Portion, Portion]:
        """Return the portions of the source, which the first call reads."""
        if self._portions is None:
            training, test = self.source.load()
            self._portions = _read_into_memory(training), _read_into_memory(test)
        return self._portions


def _read_into_memory(portion: Portion) -> Portion:
    items = [portion[index] for index in range(len(portion))]
    return TensorDataset(*(torch.stack(column) for column in zip(*items, strict=True)))


def stacked(portion: Portion) -> Tensor:
    """Read all images of a portion into one tensor of shape `(N, C, H, W)`."""
    return torch.stack([portion[index][0] for index in range(len(portion))])


def hold_out(portion: Portion, fraction: float, seed: int) -> tuple[Portion, Portion]:
    """Split a shuffled portion into the rest and a held-out fraction, rounded up."""
    order = torch.randperm(len(portion), generator=torch.Generator().manual_seed(seed)).tolist()
    held_out = math.ceil(fraction * len(portion))
    return Subset(portion, order[held_out:]), Subset(portion, order[:held_out])
