"""Sources that reduce the grey levels or the pixels of another source."""

import torch
from torch import Tensor

from examples.images.sources.base import Mapped, Portion, Source
from pyro_resflow.distributions import as_signed


class FewerBits(Source):
    """The images of a source, with only the highest bits of their grey levels.

    Args:
        source: The source of the images.
        bits: Number of bits to keep, for 2^bits grey levels.
    """

    def __init__(self, source: Source, bits: int = 5) -> None:
        if bits < 1 or source.bins % 2**bits or source.bins == 2**bits:
            raise ValueError(
                f"bits: expected fewer bits than the source has, such that 2^bits divides its "
                f"{source.bins} grey levels, got {bits}"
            )
        self.source = source
        self.event_shape = source.event_shape
        self.classes = source.classes
        self.bins = 2**bits

    def __str__(self) -> str:
        return f"{self.source}, {self.bins} grey levels"

    def load(self) -> tuple[Portion, Portion]:
        """Return the portions of the source, which reduce an image when it is fetched."""
        training, test = self.source.load()
        return Mapped(training, self.reduce), Mapped(test, self.reduce)

    def reduce(self, image: Tensor) -> Tensor:
        """Divide by the number of levels that become one, and round down."""
        return as_signed(image) // (self.source.bins // self.bins)


class Averaged(Source):
    """The images of a source, with each block of pixels averaged into one.

    The mean is rounded to the nearest grey level, halves up, in integer arithmetic, which gives
    the same images on every machine.

    Args:
        source: The source of the images.
        factor: Height and width of a block.
    """

    def __init__(self, source: Source, factor: int = 2) -> None:
        channels, height, width = source.event_shape
        if factor < 2 or height % factor or width % factor:
            raise ValueError(
                f"factor: expected at least 2 and a divisor of the source's {height}x{width} "
                f"pixels, got {factor}"
            )
        self.source = source
        self.factor = factor
        self.event_shape = (channels, height // factor, width // factor)
        self.classes = source.classes
        self.bins = source.bins

    def __str__(self) -> str:
        return f"{self.source}, {self.factor}x{self.factor} pixels averaged"

    def load(self) -> tuple[Portion, Portion]:
        """Return the portions of the source, which average an image when it is fetched."""
        training, test = self.source.load()
        return Mapped(training, self.reduce), Mapped(test, self.reduce)

    def reduce(self, image: Tensor) -> Tensor:
        """Average an image of shape `(C, H, W)`."""
        return averaged(image, self.factor)


def averaged(image: Tensor, factor: int) -> Tensor:
    """Return the means of blocks of integer pixels, rounded to the nearest integer, halves up."""
    image = as_signed(image)
    blocks = image.unfold(-2, factor, factor).unfold(-2, factor, factor)
    total = blocks.sum((-2, -1), dtype=torch.int32)
    pixels = factor**2
    return ((2 * total + pixels) // (2 * pixels)).to(image.dtype)
