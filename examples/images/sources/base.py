"""What a source of images is, and how its portions are split and changed."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

Portion: TypeAlias = Dataset[tuple[Tensor, ...]]
"""A sequence of `(image,)` or `(image, label)`: the image uint8 `(C, H, W)`, the label int64."""


class Source(ABC):
    """Integer images of one shape, and labels where there are classes.

    Attributes:
        event_shape: Channels, height and width of an image.
        bins: Number of grey levels; values are 0 .. bins - 1.
        classes: Number of classes, labelled 0 .. classes - 1; 0 if images carry no label.
    """

    event_shape: tuple[int, int, int]
    bins: int = 256
    classes: int = 0

    @abstractmethod
    def load(self) -> tuple[Portion, Portion]:
        """Return the training and the test portion, downloaded or unpacked if need be."""


class Mapped(Dataset[tuple[Tensor, ...]]):
    """A portion whose images pass through a function when they are fetched.

    Args:
        portion: The images.
        function: From one image to another.
    """

    def __init__(self, portion: Portion, function: Callable[[Tensor], Tensor]) -> None:
        self.portion = portion
        self.function = function

    def __len__(self) -> int:
        return len(self.portion)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        image, *label = self.portion[index]
        return self.function(image), *label


def hold_out(portion: Portion, fraction: float, seed: int) -> tuple[Portion, Portion]:
    """Split a shuffled portion into the rest and a held-out fraction, rounded up."""
    order = torch.randperm(len(portion), generator=torch.Generator().manual_seed(seed)).tolist()
    held_out = math.ceil(fraction * len(portion))
    return Subset(portion, order[held_out:]), Subset(portion, order[:held_out])
