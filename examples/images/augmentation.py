"""Random augmentations: modules that change each image of a batch, on the batch's device."""

from typing import Literal

import torch
from torch import Tensor, nn


class RandomFlip(nn.Module):
    """Mirrors images from left to right.

    Args:
        probability: Probability that an image is mirrored.
    """

    def __init__(self, probability: float = 0.5) -> None:
        super().__init__()
        if not 0 <= probability <= 1:
            raise ValueError(f"probability: expected a number in [0, 1], got {probability}")
        self.probability = probability

    def forward(self, images: Tensor) -> Tensor:
        """Mirror some of the images of shape `(N, C, H, W)`."""
        mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < self.probability
        return torch.where(mirrored, images.flip(-1), images)


Edges = Literal["reflect", "symmetric", "nearest"]


class RandomShift(nn.Module):
    """Shifts images by whole pixels: pads them on all sides and crops at a random place.

    Args:
        pixels: The largest shift in each direction.
        edges: The padding: the image mirrored about its outermost pixels (`reflect`), mirrored
            with these repeated (`symmetric`), or the outermost pixels alone (`nearest`).
    """

    def __init__(self, pixels: int = 4, edges: Edges = "reflect") -> None:
        super().__init__()
        if pixels < 1:
            raise ValueError(f"pixels: expected at least 1, got {pixels}")
        self.pixels = pixels
        self.edges = edges

    def forward(self, images: Tensor) -> Tensor:
        """Shift each of the images of shape `(N, C, H, W)`."""
        number, _, height, width = images.shape
        rows, columns = (self._places(number, size, images.device) for size in (height, width))
        each = torch.arange(number, device=images.device)[:, None, None]
        shifted = images.movedim(1, -1)[each, rows[:, :, None], columns[:, None, :]]
        return shifted.movedim(-1, 1).contiguous()

    def _places(self, number: int, size: int, device: torch.device) -> Tensor:
        """Return the source place of each pixel along one axis, shape `(N, size)`."""
        if self.pixels >= size:
            raise ValueError(
                f"pixels {self.pixels}: expected fewer than the {size} pixels of the images"
            )
        shifts = torch.randint(-self.pixels, self.pixels + 1, (number, 1), device=device)
        places = torch.arange(size, device=device) + shifts
        last = size - 1
        if self.edges == "reflect":
            return last - (last - places.abs()).abs()
        if self.edges == "symmetric":
            return torch.where(places < 0, -1 - places, places).where(
                places <= last, 2 * last + 1 - places
            )
        return places.clamp(0, last)


class InTurn(nn.Sequential):
    """Applies several augmentations one after the other.

    Args:
        parts: The augmentations.
    """

    def __init__(self, parts: list[nn.Module]) -> None:
        super().__init__(*parts)
