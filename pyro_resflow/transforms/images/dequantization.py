"""From integer images to continuous ones: v = (x + u) / bins with u in [0, 1)."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from ..core.conditional import ConditionalBijection
from ..core.one_pass_transform import OnePassTransform
from .noise import Entrywise, EntrywiseNoise


class Dequantization(ConditionalBijection):
    """A conditional transform of noise to v = (x + u)/bins, with the distribution of that noise.

    Args:
        bins: number of grey levels; pixels are integers 0 .. bins - 1.

    Raises:
        ValueError: for fewer than two grey levels.
    """

    context_event_dim = 3

    def __init__(self, bins: int) -> None:
        super().__init__()
        if bins < 2:
            raise ValueError(f"bins: expected at least two grey levels, got {bins}.")
        self.bins = bins

    def noise(self, x: Tensor) -> dist.TorchDistribution:
        """The distribution of the noise for images of shape ``(*batch, C, H, W)``."""
        raise NotImplementedError

    def distribution(self, x: Tensor) -> dist.TransformedDistribution:
        """q(v|x): the distribution of v for images of shape ``(*batch, C, H, W)``."""
        return dist.TransformedDistribution(self.noise(x), [self.condition(x)])


class UniformDequantization(Dequantization):
    r"""Uniform noise in each pixel's bin: ``condition(x)`` maps u to :math:`v = (x + u)/bins`.

    Args:
        bins: number of grey levels; pixels are integers 0 .. bins - 1.

    Raises:
        ValueError: for fewer than two grey levels.

    Reference:
        Theis, van den Oord and Bethge, A Note on the Evaluation of Generative Models, 2016.

    Example:
        >>> import torch
        >>> from pyro_resflow.transforms import UniformDequantization
        >>> x = torch.randint(0, 256, (7, 1, 4, 4))
        >>> dequantize = UniformDequantization(256)
        >>> v = dequantize.distribution(x).sample()
        >>> bool(((v * 256).floor() == x).all())
        True
    """

    def noise(self, x: Tensor) -> dist.TorchDistribution:
        """The distribution of u for images of shape ``(*batch, C, H, W)``."""
        dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
        dtype = torch.promote_types(dtype, torch.float32)  # half precision cannot resolve bins
        zeros = torch.zeros(x.shape, dtype=dtype, device=x.device)
        entries = dist.Uniform(zeros, zeros + 1, validate_args=False)
        return EntrywiseNoise(entries, 3, validate_args=False)

    def condition(self, context: Tensor) -> ConditionedUniformDequantization:
        """The transform of u given the images ``context`` of shape ``(*batch, C, H, W)``.

        Raises:
            ValueError: if the images have fewer than three dimensions.
        """
        if context.dim() < 3:
            raise ValueError(
                f"context: expected images of shape (*batch, C, H, W), got {tuple(context.shape)}."
            )
        return ConditionedUniformDequantization(context, self.bins)


class ConditionedUniformDequantization(OnePassTransform):
    r"""The map :math:`u \mapsto (x + u)/bins` given images x.

    u is clamped away from 0 and 1 by :func:`rounding_margin`, so that rounding never moves v out
    of its bin.

    Args:
        images: integers of shape ``(*batch, C, H, W)``.
        bins: number of grey levels.
        cache_size: 0 or 1.
    """

    context: Tensor

    domain = constraints.independent(constraints.unit_interval, 3)
    codomain = Entrywise(constraints.unit_interval, 3)

    def __init__(self, images: Tensor, bins: int, *, cache_size: int = 1) -> None:
        super().__init__(cache_size=cache_size)
        self.context = images
        self.bins = bins

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        least = rounding_margin(self.bins, x.dtype)
        y = (self.context.to(x.dtype) + x.clamp(least, 1 - least)) / self.bins
        return y, self._ladj(y)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._inverse(y), self._ladj(y)

    def _inverse(self, y: Tensor) -> Tensor:
        return y * self.bins - self.context.to(y.dtype)

    def _ladj(self, y: Tensor) -> Tensor:
        pixels = y.shape[-3] * y.shape[-2] * y.shape[-1]
        return y.new_full(y.shape[:-3], -pixels * math.log(self.bins))

    def forward_shape(self, shape: tuple[int, ...]) -> torch.Size:
        return torch.broadcast_shapes(shape, self.context.shape)

    inverse_shape = forward_shape


def rounding_margin(bins: int, dtype: torch.dtype) -> float:
    """The distance of u from 0 and 1 that keeps v = (x + u)/bins in its bin when rounded."""
    return 2 * bins * torch.finfo(dtype).eps
