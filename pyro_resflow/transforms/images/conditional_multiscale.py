"""Factoring out channels in flows that depend on a context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform

from ...nn import Conditioner
from ..core.conditional import ConditionalBijection, ConditionalCompose, common_batch
from .multiscale import Split, flatten_after, multiscale_parts, split_shape


class ConditionalSplit(ConditionalBijection):
    """Factor out the second half of the channels; a context changes how the first is transformed.

    Args:
        inner: conditional or unconditional transform of images ``(C - C//2, H, W)`` to vectors or
            images.
        event_shape: ``(C, H, W)``.

    Raises:
        ValueError: for a single channel.

    Example:
        >>> import torch
        >>> from pyro_resflow.nn import ConditionalChain, LipschitzConvNet
        >>> from pyro_resflow.transforms import ConditionalResidual, ConditionalSplit
        >>> net = ConditionalChain(LipschitzConvNet((2, 4, 4), [8], kernel_sizes=[3, 3]), 5)
        >>> split = ConditionalSplit(ConditionalResidual(net), (4, 4, 4))
        >>> split.condition(torch.randn(7, 5))(torch.randn(7, 4, 4, 4)).shape
        torch.Size([7, 64])
    """

    def __init__(self, inner: Any, event_shape: Sequence[int]) -> None:
        super().__init__()
        self.event_shape = torch.Size(event_shape)
        kept_shape = split_shape(event_shape)
        self.inner = ConditionalCompose([inner, *flatten_after(inner, kept_shape)])

    def condition(self, context: Tensor) -> ConditionedSplit:
        """The split at a context of shape ``(*batch, context_dim)``."""
        batch_shape = context.shape[: context.dim() - self.context_event_dim]
        return ConditionedSplit(self.inner.condition(context), self.event_shape, batch_shape)

    def forward_shape(self, shape: tuple[int, ...]) -> torch.Size:
        return torch.Size((*shape[:-3], self.event_shape.numel()))

    def inverse_shape(self, shape: tuple[int, ...]) -> torch.Size:
        return torch.Size((*shape[:-1], *self.event_shape))


class ConditionedSplit(Split):
    """A conditional split at one context; made by ``condition``.

    Args:
        inner: see :class:`Split`.
        event_shape: see :class:`Split`.
        batch_shape: batch shape of the context, which broadcasts with that of the input.
        cache_size: 0 or 1.
    """

    def __init__(
        self,
        inner: Transform,
        event_shape: Sequence[int],
        batch_shape: Sequence[int],
        *,
        cache_size: int = 1,
    ) -> None:
        super().__init__(inner, event_shape, cache_size=cache_size)
        self.batch_shape = torch.Size(batch_shape)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().call_and_ladj(self._expanded(x, 3))

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return super().inverse_and_ladj(self._expanded(y, 1))

    def _call(self, x: Tensor) -> Tensor:
        return super()._call(self._expanded(x, 3))

    def _inverse(self, y: Tensor) -> Tensor:
        return super()._inverse(self._expanded(y, 1))

    def _expanded(self, x: Tensor, event_dim: int) -> Tensor:
        """x at the common batch shape, since both halves must have the same."""
        if x.dim() < event_dim:
            return x  # the split reports the wrong shape
        batch = common_batch(x.shape[: x.dim() - event_dim], self.batch_shape)
        return x.expand(*batch, *x.shape[x.dim() - event_dim :])

    def forward_shape(self, shape: Sequence[int]) -> torch.Size:
        batch = common_batch(shape[:-3], self.batch_shape)
        return torch.Size((*batch, self.event_shape.numel()))

    def inverse_shape(self, shape: Sequence[int]) -> torch.Size:
        batch = common_batch(shape[:-1], self.batch_shape)
        return torch.Size((*batch, *self.event_shape))


class ConditionalMultiscale(ConditionalCompose):
    """A sequence of levels that depend on a context, with half of the channels factored out.

    See :class:`Multiscale`.

    Args:
        levels: conditional or unconditional transforms of images to images; the last may end in
            vectors.
        event_shape: ``(C, H, W)``, the input of the first level.
        prior: see :class:`Multiscale`; these priors do not depend on the context.

    Raises:
        ValueError: without levels, or if a single channel is left to be halved.
    """

    def __init__(
        self,
        levels: Sequence[Any],
        event_shape: Sequence[int],
        *,
        prior: Conditioner | None = None,
    ) -> None:
        super().__init__(
            multiscale_parts(levels, event_shape, prior, ConditionalMultiscale, ConditionalSplit)
        )
