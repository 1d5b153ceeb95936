"""Sources made of other sources: fewer grey levels, fewer pixels."""

import torch
from torch import Tensor

from examples.images.sources.base import Mapped, Portion, Source
from pyro_resflow.distributions import as_signed


class FewerBits(Source):
    """The images of a source with only the highest bits of their grey levels, rounded down.

    Args:
        source: Where the images come from.
        bits: Bits that are kept; there are 2^bits grey levels.
    """

    def __init__(self, source: Source, bits: int = 5) -> None:
        if bits < 1 or source.bins % 2**bits or source.bins == 2**bits:
            raise ValueError(
                f"bits must be smaller than those of the source's {source.bins} grey levels, "
                f"which 2^bits has to divide, got {bits}"
            )
        self.source = source
        self.event_shape = source.event_shape
        self.classes = source.classes
        self.bins = 2**bits

    def __str__(self) -> str:
        return f"{self.source}, {self.bins} grey levels"

    def load(self) -> tuple[Portion, Portion]:
        """Return the portions of the source, reduced when an image is fetched."""
        training, test = self.source.load()
        return Mapped(training, self.reduce), Mapped(test, self.reduce)

    def reduce(self, image: Tensor) -> Tensor:
        """Divide by the levels that become one, and round down."""
        return as_signed(image) // (self.source.bins // self.bins)


class Averaged(Source):
    """The images of a source, each block of pixels averaged into one.

    The mean is rounded to the nearest grey level, halves up, in integers: the same on every
    machine.

    Args:
        source: Where the images come from.
        factor: Height and width of a block.
    """

    def __init__(self, source: Source, factor: int = 2) -> None:
        channels, height, width = source.event_shape
        if factor < 2 or height % factor or width % factor:
            raise ValueError(
                f"factor must be at least 2 and divide the source's {height}x{width} pixels, "
                f"got {factor}"
            )
        self.source = source
        self.factor = factor
        self.event_shape = (channels, height // factor, width // factor)
        self.classes = source.classes
        self.bins = source.bins

    def __str__(self) -> str:
        return f"{self.source}, {self.factor}x{self.factor} pixels averaged"

    def load(self) -> tuple[Portion, Portion]:
        """Return the portions of the source, averaged when an image is fetched."""
        training, test = self.source.load()
        return Mapped(training, self.reduce), Mapped(test, self.reduce)

    def reduce(self, image: Tensor) -> Tensor:
        """Average an image of shape `(C, H, W)`."""
        return averaged(image, self.factor)


def averaged(image: Tensor, factor: int) -> Tensor:
    """Means of blocks of integer pixels, rounded to the nearest integer, halves up."""
    image = as_signed(image)
    blocks = image.unfold(-2, factor, factor).unfold(-2, factor, factor)
    total = blocks.sum((-2, -1), dtype=torch.int32)
    pixels = factor**2
    return ((2 * total + pixels) // (2 * pixels)).to(image.dtype)
