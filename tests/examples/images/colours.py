"""Colour images with labels, which no package ships."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Subset, TensorDataset

from examples.images.sources import Digits, Mapped, Portion, Source, stacked


class ColouredDigits(Source):
    """scikit-learn's digits, enlarged to 32x32 in three channels and 256 grey levels."""

    event_shape = (3, 32, 32)
    classes = 10

    def load(self) -> tuple[Portion, Portion]:
        training, test = Digits().load()
        return Mapped(training, colour), Mapped(test, colour)


def colour(image: Tensor) -> Tensor:
    """A digit of 8x8 pixels and 17 levels, in three shades."""
    shades = torch.tensor([15, 10, 5], dtype=torch.uint8).reshape(3, 1, 1)
    return F.interpolate((image * shades)[None], scale_factor=4.0)[0]


class Channels(Source):
    """Few digits, with a number of channels of 16 bits that differ.

    Args:
        number: The number.
    """

    bins = 65_536

    def __init__(self, number: int) -> None:
        self.event_shape = (number, 8, 8)

    def load(self) -> tuple[Portion, Portion]:
        """The first digits alone."""
        scales = 4095 - 100 * torch.arange(self.event_shape[0])[:, None, None]
        training, test = (
            TensorDataset((stacked(Subset(part, range(number))).long() * scales).to(torch.uint16))
            for part, number in zip(Digits().load(), (80, 10), strict=True)
        )
        return training, test
