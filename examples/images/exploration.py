"""Samples, interpolations, reconstructions and rankings by a flow of images, as tensors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_resflow.distributions import Dequantized, as_signed
from pyro_resflow.flows import ImageFlow

Path = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps two vectors and a number in [0, 1] to a vector between them."""


def linear(start: Tensor, end: Tensor, fraction: Tensor) -> Tensor:
    """Return a point on the straight line; between noise vectors, it is shorter than both."""
    return torch.lerp(start, end, fraction.to(start))  # torch 2.4 asks for one dtype


def spherical(start: Tensor, end: Tensor, fraction: Tensor) -> Tensor:
    r"""Return a point on the arc through both, which keeps the length of noise vectors.

    :math:`(\sin((1-t)\omega)\,a + \sin(t\omega)\,b) / \sin\omega`, with the angle :math:`\omega`
    between a and b; the straight line where they point the same or the opposite way.
    """
    angle = torch.arccos(torch.cosine_similarity(start, end, dim=-1).clamp(-1, 1)).unsqueeze(-1)
    weights = torch.sin((1 - fraction) * angle), torch.sin(fraction * angle)
    straight = angle.sin() < torch.finfo(angle.dtype).eps ** 0.5
    # Divide by one where the result is not used.
    arc = (weights[0] * start + weights[1] * end) / angle.sin().where(~straight, 1)
    return torch.where(straight, linear(start, end, fraction), arc)


@torch.no_grad()
def interpolate(
    flow: ImageFlow, first: Tensor, second: Tensor, steps: int = 9, path: Path = spherical
) -> Tensor:
    """Return images between two images, along a path between their noise vectors.

    Args:
        flow: Maps noise to images.
        first: Images in [0, 1] at the start, of shape `(*batch, C, H, W)`.
        second: Images at the end, of the same shape.
        steps: Number of images, including both ends.
        path: `spherical` or `linear`.

    Returns:
        Shape `(steps, *batch, C, H, W)`.
    """
    start, end = flow.inv(first), flow.inv(second)
    fractions = torch.linspace(0, 1, steps, dtype=start.dtype, device=start.device)
    return flow(torch.stack([path(start, end, fraction) for fraction in fractions]))


@torch.no_grad()
def sample_at(flow: ImageFlow, temperatures: Sequence[float], number: int) -> Tensor:
    """Draw images from one noise at several standard deviations.

    Args:
        flow: Maps noise to images.
        temperatures: Standard deviations of the noise; at 0 all images are that of zero noise.
        number: Number of images for each temperature. A flow at a batch of labels draws one image
            for each label instead.

    Returns:
        Shape `(len(temperatures), number, C, H, W)`.
    """
    base = flow.distribution().base_dist
    noise = base.sample(() if base.batch_shape else (number,))
    return flow(torch.stack([temperature * noise for temperature in temperatures]))


@dataclass(frozen=True)
class Reconstruction:
    """Images and their reconstructions by a flow.

    Attributes:
        images: Images in [0, 1], of shape `(*batch, C, H, W)`.
        returned: The reconstructions, of the same shape.
    """

    images: Tensor
    returned: Tensor

    @property
    def error(self) -> Tensor:
        """The absolute difference of each pixel."""
        return (self.returned - self.images).abs()


@torch.no_grad()
def reconstruct(flow: ImageFlow, images: Tensor) -> Reconstruction:
    """Map images in [0, 1] through `flow.inv` and then through `flow`."""
    # The transform caches its last input by identity; a clone makes it compute.
    return Reconstruction(images, flow(flow.inv(images).clone()))


@dataclass(frozen=True)
class Ranking:
    """Images in decreasing order of likelihood.

    Attributes:
        images: Integer images of shape `(N, C, H, W)`.
        bits: Bits/dim of each, increasing, of shape `(N,)`.
    """

    images: Tensor
    bits: Tensor


@torch.no_grad()
def rank(distribution: Dequantized, images: Tensor, draws: int = 1) -> Ranking:
    """Sort images by their likelihood.

    Args:
        distribution: The distribution of the images.
        images: Integer images of shape `(N, C, H, W)`.
        draws: Draws of dequantization noise (and probes) to average for each image.
    """
    images = as_signed(images)
    scored = [distribution.bits_per_dim(images) for _ in range(draws)]
    bits, order = torch.stack(scored).mean(0).sort()
    return Ranking(images[order], bits)
