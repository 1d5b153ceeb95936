"""The base class of image flows: the inverse of an encoder from images to noise vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, cast

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from ..transforms import Compose, Inverse, Logit, MarginalGaussianization
from ..transforms.core.checks import check_dtype, check_event_shape
from ..transforms.core.ranges import check_not_pixels
from ..transforms.images.noise import EntrywiseNoise, entrywise

PUBLISHED_ALPHA = 0.05
"""The margin of the published models' logit."""

CHECKING_THE_RANGE = (Logit, MarginalGaussianization)
"""Input maps that check the range of the images themselves."""


class Encoder(Compose):
    """A sequence of transforms from images to vectors that checks its input.

    Args:
        parts: see :class:`pyro_resflow.transforms.Compose`.
        event_shape: ``(C, H, W)``.
    """

    def __init__(self, parts: Sequence[Transform], event_shape: Sequence[int]) -> None:
        super().__init__(parts)
        self.event_shape = torch.Size(event_shape)
        if isinstance(self.parts[0], MarginalGaussianization):
            self.parts[0].check_features(self.event_shape)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self._check_images(x)
        return super().call_and_ladj(x)

    def _call(self, x: Tensor) -> Tensor:
        self._check_images(x)
        return super()._call(x)

    def _check_images(self, x: Tensor) -> None:
        check_event_shape("images", x, self.event_shape)
        check_dtype("images", x, self)
        if not isinstance(self.parts[0], CHECKING_THE_RANGE):
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
    """A flow from noise vectors to images on [0, 1]: the inverse of an encoder of images.

    The density of an image takes one pass of the encoder; sampling inverts the encoder. Images
    of a wrong range raise an error where the flow can detect them: values outside the domain of
    a logit in front, or without a logit, integers above 1.

    Args:
        parts: the encoder, a sequence of transforms from images ``(C, H, W)`` to vectors of the
            same number of entries.
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
        """The inverse, from images to noise vectors."""
        return cast(Encoder, self.transform)

    @property
    def latent_dim(self) -> int:
        """Size D of the noise vector."""
        return self.event_shape.numel()

    def distribution(self) -> dist.TransformedDistribution:
        """The distribution of images, that is, of this flow applied to standard normal noise."""
        return dist.TransformedDistribution(standard_noise(self), [self])

    def forward_shape(self, shape: tuple[int, ...]) -> torch.Size:
        return torch.Size((*shape[:-1], *self.event_shape))

    def inverse_shape(self, shape: tuple[int, ...]) -> torch.Size:
        return torch.Size((*shape[: len(shape) - 3], self.latent_dim))


class TakesNoise(Protocol):
    """A module that maps noise vectors to images."""

    @property
    def latent_dim(self) -> int:
        """Size D of the noise vector."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters, which have the dtype and the device of the noise."""


def standard_noise(flow: TakesNoise) -> EntrywiseNoise:
    """The standard normal noise of a flow, with its dtype and on its device."""
    like = next(flow.parameters(), torch.empty(()))
    zeros = torch.zeros(flow.latent_dim, dtype=like.dtype, device=like.device)
    entries = dist.Normal(zeros, torch.ones_like(zeros), validate_args=False)
    return EntrywiseNoise(entries, 1, validate_args=False)


def input_maps(input_map: Transform | None, alpha: float | None) -> list[Transform]:
    """The transforms in front of an encoder: the input map if it is given, else a logit.

    Args:
        input_map: a transform of images, applied entry by entry.
        alpha: margin of the logit; None for no logit.

    Raises:
        ValueError: if both are given.
    """
    if input_map is None:
        return [Logit(alpha, event_dim=3)] if alpha is not None else []
    if alpha != PUBLISHED_ALPHA:
        raise ValueError(
            f"alpha, input_map: expected one of them, got alpha={alpha} and a "
            f"{type(input_map).__name__}; leave alpha out, or pass input_map=Logit({alpha})."
        )
    return [input_map]


def checked_scales(
    event_shape: Sequence[int], scales: int, squeeze_first: bool, *, name: str = "blocks"
) -> torch.Size:
    """Check that an image shape is divisible by the squeezes, and return it as a ``torch.Size``.

    Args:
        event_shape: ``(C, H, W)``.
        scales: number of scales, with a squeeze between them.
        squeeze_first: whether another squeeze precedes the first scale.
        name: the argument that gives the number of scales.

    Raises:
        ValueError: if it is not an image shape, has no scale, or is not divisible by a squeeze.
    """
    squeezes = scales - 1 + squeeze_first
    if scales < 1:
        raise ValueError(f"{name}: expected at least one scale, got none.")
    if len(event_shape) != 3 or not all(_can_halve(size, squeezes) for size in event_shape[1:]):
        factor = 2**squeezes if squeezes < _LONGEST_EXPONENT else f"2**{squeezes}"
        raise ValueError(
            f"event_shape: expected (C, H, W) with H and W divisible by {factor} for "
            f"{squeezes} squeezes, got {tuple(event_shape)}."
        )
    return torch.Size(event_shape)


_LONGEST_EXPONENT = 64
"""An error writes powers of two below this exponent as a number; others have too many digits."""


def _can_halve(size: int, times: int) -> bool:
    """Whether 2**times divides a size; a power larger than the size is not computed."""
    return times == 0 or (times < int(size).bit_length() and size % 2**times == 0)
