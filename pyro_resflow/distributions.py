"""Pyro distributions over integer images."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Protocol

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Transform, constraints

from .transforms.base import call_and_ladj


class Dequantizer(Protocol):
    """A conditional transform from noise to v = (x + u)/bins, and the noise it starts from."""

    bins: int

    def noise(self, x: Tensor) -> dist.TorchDistribution:
        """The distribution of the noise for images x of shape ``(*batch, C, H, W)``."""

    def condition(self, context: Tensor) -> Transform:
        """The transform from noise to v at the images ``context``."""


class Dequantized(dist.TorchDistribution):
    r"""A distribution over images of integers, from a flow over continuous ones.

    An integer image x has the probability of its cell,
    :math:`P(x) = \int_{[0,1)^D} p((x+u)/b)\,b^{-D} du`, of which ``log_prob`` returns an unbiased
    estimate of the lower bound

    .. math:: \log P(x) \ge E_{v \sim q(v|x)}[\log p(v) - \log q(v|x)],

    one draw of v for each image. ``sample`` draws v from the flow and floors it.

    Args:
        flow_dist: distribution of continuous images of event shape ``(C, H, W)`` on [0, 1], for
            instance ``flow.distribution()``.
        dequantizer: q(v|x), for instance ``UniformDequantization(bins)``.
        bins: number of grey levels b.
        validate_args: whether ``log_prob`` checks its pixels; default Pyro's setting.

    Raises:
        ValueError: for an event that is no image, and by ``log_prob`` for pixels that are not
            integers in 0 .. bins - 1.

    Reference:
        Ho et al., Flow++, 2019, section 3.1; Theis et al., 2016.

    Example:
        >>> from pyro_resflow.distributions import Dequantized
        >>> from pyro_resflow.flows import ConvBlock, ResidualFlow
        >>> from pyro_resflow.transforms import UniformDequantization
        >>> import torch
        >>> flow = ResidualFlow((1, 4, 4), blocks=(2,), network=ConvBlock(8))
        >>> d = Dequantized(flow.distribution(), UniformDequantization(16), 16)
        >>> d.log_prob(torch.randint(0, 16, (7, 1, 4, 4))).shape
        torch.Size([7])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(
        self,
        flow_dist: dist.TorchDistribution,
        dequantizer: Dequantizer,
        bins: int,
        *,
        validate_args: bool | None = None,
    ) -> None:
        if len(flow_dist.event_shape) != 3:
            raise ValueError(
                "flow_dist: expected a distribution of images of event shape (C, H, W), got event "
                f"shape {tuple(flow_dist.event_shape)}."
            )
        if bins < 2:
            raise ValueError(f"bins: expected at least two grey levels, got {bins}.")
        if dequantizer.bins != bins:
            raise ValueError(
                f"bins: the dequantizer was built for {dequantizer.bins} grey levels, got {bins}."
            )
        self.flow_dist = flow_dist
        self.dequantizer = dequantizer
        self.bins = bins
        super().__init__(flow_dist.batch_shape, flow_dist.event_shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=3)
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.integer_interval(0, self.bins - 1), 3)

    def expand(
        self, batch_shape: torch.Size | list[int] | tuple[int, ...], _instance: Any = None
    ) -> Dequantized:
        """The same distribution over a larger batch shape."""
        new = self._get_checked_instance(Dequantized, _instance)
        new.flow_dist = self.flow_dist.expand(batch_shape)
        new.dequantizer, new.bins = self.dequantizer, self.bins
        super(Dequantized, new).__init__(
            torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """An unbiased estimate of the lower bound of log P(value), in nats.

        Args:
            value: integers (of any type) of shape ``(*sample, *batch_shape, C, H, W)``.

        Returns:
            Shape ``(*sample, *batch_shape)``.
        """
        check_images(value, self.event_shape, self.bins, check_values=self._validate_args)
        noise_dist = self.dequantizer.noise(value)
        noise = noise_dist.rsample()
        v, ladj = call_and_ladj(self.dequantizer.condition(value), noise)
        return self.flow_dist.log_prob(v) - (noise_dist.log_prob(noise) - ladj)

    def bits_per_dim(self, value: Tensor) -> Tensor:
        """The bound as a code length, -log_prob / (D log 2) bits per pixel and channel."""
        return -self.log_prob(value) / (self.event_shape.numel() * math.log(2))

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Integer images (torch.long) of shape ``(*sample_shape, *batch_shape, C, H, W)``.

        What the flow puts outside [0, 1] becomes the nearest grey level.
        """
        with torch.no_grad():
            v = self.flow_dist.sample(torch.Size(sample_shape))
            return (v * self.bins).floor().clamp(0, self.bins - 1).long()


def check_images(
    images: Tensor, event_shape: torch.Size, bins: int, *, check_values: bool
) -> None:
    """Raise unless ``images`` ends in ``event_shape`` and holds integers in 0 .. bins - 1.

    Args:
        images: shape ``(*batch, C, H, W)``, of any real type.
        event_shape: ``(C, H, W)``.
        bins: number of grey levels.
        check_values: whether to look at the pixels, which waits for the device.

    Raises:
        ValueError: saying what was expected and what was given.
    """
    if images.dim() < 3 or images.shape[-3:] != event_shape:
        raise ValueError(
            f"value: expected images of shape (*batch, {', '.join(map(str, event_shape))}), got "
            f"{tuple(images.shape)}."
        )
    if not check_values or images.is_meta or not images.numel():
        return
    if images.is_floating_point() and not bool((images == images.floor()).all()):
        what = "nan" if bool(images.isnan().any()) else "a fraction"
        raise ValueError(
            f"value: expected integer pixels 0 .. {bins - 1}, found {what}. Images on [0, 1] are "
            "scored by the flow's own distribution, not by Dequantized."
        )
    low, high = images.min(), images.max()
    if bool((low < 0) | (high > bins - 1)):
        raise ValueError(
            f"value: expected integer pixels 0 .. {bins - 1} for bins={bins}, got values from "
            f"{low.item()} to {high.item()}."
        )
