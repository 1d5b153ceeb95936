"""Squeezing, factoring out, and the multiscale architecture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import ReshapeTransform, Transform, constraints
from torch.nn import functional as F

from ...nn import Conditioner
from ..core.checks import check_event_shape
from ..core.compose import Compose
from ..core.evaluation import call_and_ladj, event_dims, inverse_and_ladj
from ..core.one_pass_transform import OnePassTransform
from ..couplings.masks import first_half
from .split_prior import SplitPrior


class Squeeze(OnePassTransform):
    """Trade image size for channels: ``(C, H, W)`` to ``(C f^2, H/f, W/f)``.

    Args:
        factor: f.
        cache_size: 0 or 1.

    Raises:
        ValueError: when called, if f does not divide the image's height and width.

    Reference:
        Dinh, Sohl-Dickstein and Bengio, Density Estimation Using Real NVP, 2017, section 3.6.

    Example:
        >>> import torch
        >>> from pyro_resflow.transforms import Squeeze
        >>> Squeeze()(torch.randn(7, 1, 8, 8)).shape
        torch.Size([7, 4, 4, 4])
    """

    def __init__(self, factor: int = 2, *, cache_size: int = 1) -> None:
        super().__init__(cache_size=cache_size)
        self.factor = factor

    domain = constraints.independent(constraints.real, 3)
    codomain = constraints.independent(constraints.real, 3)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shape = self.forward_shape(x.shape)
        # pixel_unshuffle returns an empty batch as it is, and cannot differentiate that
        y = F.pixel_unshuffle(x, self.factor) if x.numel() else x.reshape(shape)
        return y, x.new_zeros(x.shape[:-3])

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._inverse(y), y.new_zeros(y.shape[:-3])

    def _inverse(self, y: Tensor) -> Tensor:
        shape = self.inverse_shape(y.shape)
        return F.pixel_shuffle(y, self.factor) if y.numel() else y.reshape(shape)

    def forward_shape(self, shape: Sequence[int]) -> torch.Size:
        f = self.factor
        if len(shape) < 3 or shape[-2] % f or shape[-1] % f:
            raise ValueError(
                f"x: expected shape (*batch, C, H, W) with H and W divisible by {f}, got "
                f"{tuple(shape)}."
            )
        return torch.Size((*shape[:-3], shape[-3] * f * f, shape[-2] // f, shape[-1] // f))

    def inverse_shape(self, shape: Sequence[int]) -> torch.Size:
        f = self.factor
        if len(shape) < 3 or shape[-3] % (f * f):
            raise ValueError(
                f"y: expected shape (*batch, C, H, W) with C divisible by {f * f}, got "
                f"{tuple(shape)}."
            )
        return torch.Size((*shape[:-3], shape[-3] // (f * f), shape[-2] * f, shape[-1] * f))


class Flatten(Compose):
    """Reshape images ``(C, H, W)`` to vectors ``(C H W,)``.

    Args:
        event_shape: ``(C, H, W)``.

    Example:
        >>> import torch
        >>> from pyro_resflow.transforms import Flatten
        >>> Flatten((3, 4, 4))(torch.randn(7, 3, 4, 4)).shape
        torch.Size([7, 48])
    """

    def __init__(self, event_shape: Sequence[int]) -> None:
        shape = torch.Size(event_shape)
        super().__init__([ReshapeTransform(shape, torch.Size((shape.numel(),)))])


class Split(OnePassTransform):
    r"""Factor out the second half of the channels and transform only the first.

    :math:`(a, b) \mapsto [\mathrm{flat}(b), \mathrm{inner}(a)]`: the result is a vector with the
    factored-out half first, followed by the inner transform of the rest. A :class:`SplitPrior`
    before the split gives b a learned prior conditional on a.

    Args:
        inner: transform of images ``(C - C//2, H, W)`` to vectors or images.
        event_shape: ``(C, H, W)``.
        cache_size: 0 or 1.

    Raises:
        ValueError: for a single channel.

    Reference:
        Dinh, Sohl-Dickstein and Bengio, Density Estimation Using Real NVP, 2017, section 3.6.

    Example:
        >>> import torch
        >>> from pyro_resflow.transforms import ActNorm, Split
        >>> split = Split(ActNorm(2, event_dim=3, initialized=True), (4, 4, 4))
        >>> split(torch.randn(7, 4, 4, 4)).shape
        torch.Size([7, 64])
    """

    def __init__(
        self, inner: Transform, event_shape: Sequence[int], *, cache_size: int = 1
    ) -> None:
        super().__init__(cache_size=cache_size)
        self.event_shape = torch.Size(event_shape)
        kept_shape = split_shape(event_shape)
        self.kept = kept_shape[0]
        self.inner = Compose([inner, *flatten_after(inner, kept_shape)])

    domain = constraints.independent(constraints.real, 3)
    codomain = constraints.independent(constraints.real, 1)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_event_shape("x", x, self.event_shape)
        a, b = x.tensor_split([self.kept], dim=-3)
        z, ladj = call_and_ladj(self.inner, a)
        return torch.cat([b.flatten(-3), z], dim=-1), ladj

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        b, z = self._halves(y)
        a, ladj = inverse_and_ladj(self.inner, z)
        return torch.cat([a, b], dim=-3), ladj

    def _call(self, x: Tensor) -> Tensor:
        check_event_shape("x", x, self.event_shape)
        a, b = x.tensor_split([self.kept], dim=-3)
        return torch.cat([b.flatten(-3), self.inner._call(a)], dim=-1)

    def _inverse(self, y: Tensor) -> Tensor:
        b, z = self._halves(y)
        return torch.cat([self.inner._inverse(z), b], dim=-3)

    def _halves(self, y: Tensor) -> tuple[Tensor, Tensor]:
        check_event_shape("y", y, (self.event_shape.numel(),))
        channels, height, width = self.event_shape
        b, z = y.tensor_split([(channels - self.kept) * height * width], dim=-1)
        return b.unflatten(-1, (channels - self.kept, height, width)), z

    def forward_shape(self, shape: Sequence[int]) -> torch.Size:
        return torch.Size((*shape[:-3], self.event_shape.numel()))

    def inverse_shape(self, shape: Sequence[int]) -> torch.Size:
        return torch.Size((*shape[:-1], *self.event_shape))


def split_shape(event_shape: Sequence[int]) -> torch.Size:
    """The shape of the half of the channels that a split keeps.

    Raises:
        ValueError: for a single channel.
    """
    channels, height, width = event_shape
    if channels < 2:
        raise ValueError(
            f"event_shape: expected at least two channels to split, got {tuple(event_shape)}."
        )
    return torch.Size((first_half(channels), height, width))


class Multiscale(Compose):
    """A sequence of levels, with half of the channels factored out after each but the last.

    The result is a vector: the halves in the order in which they are factored out, then the
    output of the last level.

    Args:
        levels: transforms of images to images; the last may end in vectors.
        event_shape: ``(C, H, W)``, the input of the first level.
        prior: recipe of the networks that give every factored-out half a learned Gaussian prior,
            see :class:`SplitPrior`. By default there are none, and the factored-out halves are
            the noise.
        cache_size: 0 or 1.

    Raises:
        ValueError: without levels, or if a single channel is left to be halved.

    Example:
        >>> import torch
        >>> from pyro_resflow.transforms import Multiscale, Squeeze
        >>> flow = Multiscale([Squeeze(), Squeeze()], (1, 8, 8))
        >>> flow(torch.randn(7, 1, 8, 8)).shape
        torch.Size([7, 64])
    """

    def __init__(
        self,
        levels: Sequence[Transform],
        event_shape: Sequence[int],
        *,
        prior: Conditioner | None = None,
        cache_size: int = 1,
    ) -> None:
        parts = multiscale_parts(levels, event_shape, prior, Multiscale, Split)
        super().__init__(parts, cache_size=cache_size)


def multiscale_parts(
    levels: Sequence[Any],
    event_shape: Sequence[int],
    prior: Conditioner | None,
    multiscale: Callable[..., Any],
    split: Callable[[Any, Sequence[int]], Any],
) -> list[Any]:
    """The parts of a multiscale composition.

    Args:
        levels: see :class:`Multiscale`.
        event_shape: see :class:`Multiscale`.
        prior: see :class:`Multiscale`.
        multiscale: class of the composition of the later levels.
        split: class of the transform that factors out channels.

    Raises:
        ValueError: see :class:`Multiscale`.
    """
    if not levels:
        raise ValueError("levels: expected at least one transform, got none.")
    first, *rest = levels
    if not rest:
        return [first, *flatten_after(first, event_shape)]
    shape = first.forward_shape(torch.Size(event_shape))
    inner = multiscale(rest, (first_half(shape[0]), *shape[1:]), prior=prior)
    priors = [SplitPrior(shape, prior)] if prior is not None else []
    return [first, *priors, split(inner, shape)]


def flatten_after(transform: Any, event_shape: Sequence[int]) -> list[Transform]:
    """A Flatten for the transform's output, unless that is a vector already."""
    shape = transform.forward_shape(torch.Size(event_shape))
    if isinstance(transform, Transform):  # a conditioned one adds the context's batch to the shape
        before, after = event_dims(transform)
        return [Flatten(shape[-3:])] if after == before else []
    return [Flatten(shape)] if len(shape) == 3 else []
