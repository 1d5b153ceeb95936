"""Pyro distributions over integer images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from .arguments import checked
from .transforms.core.determinism import (
    DrawsNoise,
    refuse_draws_in_energy,
    refuse_noise_in_average,
)
from .transforms.core.evaluation import call_and_ladj
from .transforms.core.inside import inside


class Dequantizer(Protocol):
    """A conditional transform from noise to v = (x + u)/bins, with the noise's distribution."""

    bins: int

    def noise(self, x: Tensor) -> dist.TorchDistribution:
        """The distribution of the noise for images x of shape ``(*batch, C, H, W)``."""

    def condition(self, context: Tensor) -> Transform:
        """The transform from noise to v at the images ``context``."""


@dataclass(frozen=True)
class BitsPerDim:
    """Mean bits per pixel and channel of a set of images.

    Attributes:
        mean: over the images.
        standard_error: of that mean, over the images.
        images: the number of images.

    Example:
        >>> import torch
        >>> print(BitsPerDim.of(torch.tensor([3.2, 3.4, 3.0, 3.6])))
        3.300 ± 0.129 bits/dim (4 images)
    """

    mean: float
    standard_error: float
    images: int

    @classmethod
    def of(cls, bits: Tensor) -> BitsPerDim:
        """Summarise the bits/dim of images, shape ``(N,)``.

        Raises:
            ValueError: for fewer than two images, for which the standard error is undefined.
        """
        if bits.dim() != 1 or len(bits) < 2:
            raise ValueError(
                f"bits: expected one number for each of at least two images, got shape "
                f"{tuple(bits.shape)}."
            )
        error = bits.std() / math.sqrt(len(bits))
        return cls(bits.mean().item(), error.item(), len(bits))

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.standard_error:.3f} bits/dim ({self.images} images)"


class Dequantized(DrawsNoise, dist.TorchDistribution):
    r"""A distribution over integer images, from a flow over continuous images.

    The probability of an integer image x is that of its cell,
    :math:`P(x) = \int_{[0,1)^D} p((x+u)/b)\,b^{-D} du`. ``log_prob`` returns an unbiased estimate
    of the lower bound

    .. math:: \log P(x) \ge E_{v_1, \ldots, v_K \sim q(v|x)}\Bigl[
        \log \frac{1}{K} \sum_{k=1}^K \frac{p(v_k)}{q(v_k|x)}\Bigr],

    from K draws of v for each image. The bound increases with K to :math:`\log P(x)`. ``sample``
    draws v from the flow and rounds it down to a grey level.

    Args:
        flow_dist: distribution of continuous images of event shape ``(C, H, W)`` on [0, 1], for
            instance ``flow.distribution()``.
        dequantizer: q(v|x), for instance ``UniformDequantization(bins)``.
        bins: number of grey levels b.
        num_samples: K. For K > 1 the flow's log-determinant must be deterministic.
        chunk_size: number of the K draws that are evaluated together; default all.
        validate_args: whether ``log_prob`` checks its pixels; default Pyro's setting.

    Raises:
        ValueError: for an event shape that is not that of an image. ``log_prob`` raises it for
            pixels that are not integers in 0 .. bins - 1, and for K > 1 with a noisy
            log-determinant.
        NoisyEnergyError: raised by ``log_prob`` inside HMC or NUTS.

    Reference:
        Ho et al., Flow++, 2019, section 3.1; Theis et al., 2016; for K > 1: Burda, Grosse and
        Salakhutdinov, Importance Weighted Autoencoders, 2016.

    Example:
        >>> from pyro_resflow.distributions import Dequantized
        >>> from pyro_resflow.flows import ConvBlock, ResidualFlow
        >>> from pyro_resflow.transforms import UniformDequantization
        >>> import torch
        >>> flow = ResidualFlow((1, 4, 4), blocks=(2,), network=ConvBlock(8))
        >>> d = Dequantized(flow.distribution(), UniformDequantization(16), 16)
        >>> d.log_prob(torch.randint(0, 16, (20, 1, 4, 4))).shape
        torch.Size([20])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    @checked()
    def __init__(
        self,
        flow_dist: dist.TorchDistribution,
        dequantizer: Dequantizer,
        bins: int,
        *,
        num_samples: int = 1,
        chunk_size: int | None = None,
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
                f"bins: expected {dequantizer.bins} grey levels, as the dequantizer, got {bins}."
            )
        if num_samples < 1 or (chunk_size is not None and chunk_size < 1):
            raise ValueError(
                "num_samples, chunk_size: expected at least 1 each, got "
                f"{num_samples} and {chunk_size}."
            )
        self.flow_dist = flow_dist
        self.dequantizer = dequantizer
        self.bins = bins
        self.num_samples = num_samples
        self.chunk_size = chunk_size
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
        new.num_samples, new.chunk_size = self.num_samples, self.chunk_size
        super(Dequantized, new).__init__(
            torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """An unbiased estimate of the lower bound of log P(value), in nats.

        Args:
            value: integers (of any dtype) of shape ``(*sample, *batch_shape, C, H, W)``, or a
                shape that broadcasts with it.

        Returns:
            Shape ``(*sample, *batch_shape)``.
        """
        refuse_draws_in_energy(self)
        value = as_signed(value)
        check_images(value, self.event_shape, self.bins, check_values=self._validate_args)
        # the dimension of the K draws goes in front
        shape = torch.broadcast_shapes(value.shape, self.batch_shape + self.event_shape)
        value = value.expand(shape)
        if self.num_samples == 1:
            return self._log_weights(value, torch.Size())
        refuse_noise_in_average(self)
        chunks = [
            self._log_weights(value, torch.Size((number,))).logsumexp(0)
            for number in self._chunks()
        ]
        return torch.stack(chunks).logsumexp(0) - math.log(self.num_samples)

    def _log_weights(self, value: Tensor, sample_shape: torch.Size) -> Tensor:
        """log p(v) - log q(v|value) for draws of v, shape ``(*sample_shape, *batch)``."""
        dtype = _dtype_of(self.flow_dist)
        # the dequantizer draws noise in the dtype of its images
        noise_dist = self.dequantizer.noise(value.to(dtype))
        noise = noise_dist.rsample(sample_shape)
        v, ladj = call_and_ladj(self.dequantizer.condition(value), noise)
        return self.flow_dist.log_prob(v.to(dtype)) - (noise_dist.log_prob(noise) - ladj)

    def _chunks(self) -> Iterator[int]:
        """The sizes of the chunks of draws; they add up to K."""
        size = self.chunk_size if self.chunk_size is not None else self.num_samples
        for start in range(0, self.num_samples, size):
            yield min(size, self.num_samples - start)

    def bits_per_dim(self, value: Tensor) -> Tensor:
        """The bound in bits per pixel and channel, -log_prob / (D log 2)."""
        return -self.log_prob(value) / (self.event_shape.numel() * math.log(2))

    @torch.no_grad()
    def evaluate(self, images: Tensor, *, batch_size: int = 256) -> BitsPerDim:
        """Mean bits/dim of a set of images, with its standard error.

        Call ``flow.eval()`` first if the flow has batch norms or dropout.

        Args:
            images: integers of shape ``(N, C, H, W)``, at least two images.
            batch_size: number of images that are scored together.
        """
        return BitsPerDim.of(torch.cat([self.bits_per_dim(b) for b in images.split(batch_size)]))

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Integer images (torch.long) of shape ``(*sample_shape, *batch_shape, C, H, W)``.

        Values of the flow outside [0, 1] become the nearest grey level.
        """
        with torch.no_grad():
            v = self.flow_dist.sample(torch.Size(sample_shape))
            return (v * self.bins).floor().clamp(0, self.bins - 1).long()


def as_signed(images: Tensor) -> Tensor:
    """Convert uint16, uint32 and uint64 images to int64; return others unchanged.

    torch supports hardly any arithmetic with these dtypes. Values too large for int64 become
    negative, which the check of the pixels rejects too.
    """
    return images.to(torch.int64) if images.dtype in UNSIGNED else images


UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)


def _dtype_of(flow_dist: dist.TorchDistribution) -> torch.dtype:
    """The dtype of a flow's parameters; torch's default if it has none."""
    for part in inside(flow_dist):
        if isinstance(part, nn.Module):
            for parameter in part.parameters():
                if parameter.is_floating_point():
                    return parameter.dtype
    return torch.get_default_dtype()


def check_images(
    images: Tensor, event_shape: torch.Size, bins: int, *, check_values: bool
) -> None:
    """Raise unless ``images`` ends in ``event_shape`` and holds integers in 0 .. bins - 1.

    Args:
        images: shape ``(*batch, C, H, W)``, of any real dtype.
        event_shape: ``(C, H, W)``.
        bins: number of grey levels.
        check_values: whether to check the pixels, which synchronises with the device.

    Raises:
        ValueError: for a wrong shape or invalid pixels.
    """
    if images.dim() < 3 or images.shape[-3:] != event_shape:
        raise ValueError(
            f"value: expected images of shape (*batch, {', '.join(map(str, event_shape))}), got "
            f"{tuple(images.shape)}."
        )
    if not check_values or images.is_meta or not images.numel():
        return
    if images.is_floating_point() and not bool((images == images.floor()).all()):
        found = "nan" if bool(images.isnan().any()) else "a fraction"
        raise ValueError(
            f"value: expected integer pixels 0 .. {bins - 1}, got {found}. Score images on [0, 1] "
            "with the flow's own distribution, not with Dequantized."
        )
    low, high = images.min(), images.max()
    if bool((low < 0) | (high > bins - 1)):
        raise ValueError(
            f"value: expected integer pixels 0 .. {bins - 1} for bins={bins}, got values from "
            f"{low.item()} to {high.item()}."
        )
