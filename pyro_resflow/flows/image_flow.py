"""What every flow of images is: an encoder of images to noise vectors, run backwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Transform, constraints

from ..transforms import Compose, Inverse, Logit
from ..transforms.core.checks import check_dtype, check_event_shape
from ..transforms.core.ranges import check_not_pixels
from ..transforms.images.noise import EntrywiseNoise, entrywise


class Encoder(Compose):
    """Transforms of images to vectors, one after the other, that check what they are given.

    Args:
        parts: see :class:`pyro_resflow.transforms.Compose`.
        event_shape: ``(C, H, W)``.
    """

    def __init__(self, parts: Sequence[Transform], event_shape: Sequence[int]) -> None:
        super().__init__(parts)
        self.event_shape = torch.Size(event_shape)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self._check_images(x)
        return super().call_and_ladj(x)

    def _call(self, x: Tensor) -> Tensor:
        self._check_images(x)
        return super()._call(x)

    def _check_images(self, x: Tensor) -> None:
        check_event_shape("images", x, self.event_shape)
        check_dtype("images", x, self)
        if not isinstance(self.parts[0], Logit):  # which knows its own range
            check_not_pixels(x)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        check_event_shape("noise", y, (self.event_shape.numel(),))
        check_dtype("noise", y, self)
        return super().inverse_and_ladj(y)

    def _inverse(self, y: Tensor) -> Tensor:
        check_event_shape("noise", y, (self.event_shape.numel(),))
        check_dtype("noise", y, self)
        return super()._inverse(y)


class ImageFlow(Inverse):
    """A flow from noise vectors to images on [0, 1]: an encoder of images, run backwards.

    The density of an image takes one pass of the encoder; sampling inverts it. Images of another
    range are refused where that can be told: outside the domain of a first logit, and, without
    one, integers above 1.

    Args:
        parts: the encoder: transforms of images ``(C, H, W)`` to vectors of the same size.
        event_shape: ``(C, H, W)``.
    """

    def __init__(self, parts: Sequence[Transform], event_shape: Sequence[int]) -> None:
        super().__init__(Encoder(parts, event_shape))
        self.event_shape = torch.Size(event_shape)

    @constraints.dependent_property(is_discrete=False)
    def codomain(self) -> constraints.Constraint:
        return entrywise(self.transform.domain)

    @property
    def encoder(self) -> Encoder:
        """The inverse: images to noise vectors."""
        return cast(Encoder, self.transform)

    @property
    def latent_dim(self) -> int:
        """Size D of the noise vector."""
        return self.event_shape.numel()

    def distribution(self) -> dist.TransformedDistribution:
        """The distribution of images: this flow on standard normal noise."""
        like = next(self.parameters(), torch.empty(()))
        zeros = torch.zeros(self.latent_dim, dtype=like.dtype, device=like.device)
        entries = dist.Normal(zeros, torch.ones_like(zeros), validate_args=False)
        base = EntrywiseNoise(entries, 1, validate_args=False)
        return dist.TransformedDistribution(base, [self])

    def forward_shape(self, shape: tuple[int, ...]) -> torch.Size:
        return torch.Size((*shape[:-1], *self.event_shape))

    def inverse_shape(self, shape: tuple[int, ...]) -> torch.Size:
        return torch.Size((*shape[: len(shape) - 3], self.latent_dim))


def checked_scales(
    event_shape: Sequence[int], scales: int, squeeze_first: bool, *, name: str = "blocks"
) -> torch.Size:
    """``event_shape`` as a size, checked against the number of squeezes.

    Args:
        event_shape: ``(C, H, W)``.
        scales: number of scales, with a squeeze between them.
        squeeze_first: whether there is another squeeze before the first.
        name: the argument that the number of scales comes from.

    Raises:
        ValueError: if it is no image shape, there is no scale, or a squeeze does not divide it.
    """
    squeezes = scales - 1 + squeeze_first
    if scales < 1:
        raise ValueError(f"{name}: expected at least one scale, got none.")
    if len(event_shape) != 3 or not all(_halves(size, squeezes) for size in event_shape[1:]):
        factor = 2**squeezes if squeezes < _WRITTEN_OUT else f"2**{squeezes}"
        raise ValueError(
            f"event_shape: expected (C, H, W) with H and W divisible by {factor} for "
            f"{squeezes} squeezes, got {tuple(event_shape)}."
        )
    return torch.Size(event_shape)


_WRITTEN_OUT = 64
"""From which exponent on a power of two is not written out: it could have any number of digits."""


def _halves(size: int, times: int) -> bool:
    """Whether a size can be halved so often; 2**times is not computed if it is larger."""
    return times == 0 or (times < int(size).bit_length() and size % 2**times == 0)
