"""Composition of transforms, evaluated in one pass."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.distributions import ComposeTransform, Transform, constraints
from torch.distributions.utils import _sum_rightmost

from .base import OnePassTransform, call_and_ladj, inverse_and_ladj
from .inverse import Inverse


class Compose(OnePassTransform):
    """Transforms one after the other: values and log-determinants gathered in a single pass.

    Unlike a composition whose parts each cache their last pair, it keeps only its own ends in
    memory, needs no second pass for the log-determinant in either direction, and its inverse
    registers its parameters.

    Args:
        parts: bijective transforms, ours, Pyro's or torch's, at least one.
        cache_size: 0 or 1.

    Raises:
        ValueError: without parts.

    Example:
        >>> import torch
        >>> from pyro_resflow import residual
        >>> from pyro_resflow.transforms import Compose
        >>> flow = Compose([residual(2), residual(2)])
        >>> y, ladj = flow.call_and_ladj(torch.randn(7, 2))
    """

    def __init__(self, parts: Iterable[Transform], *, cache_size: int = 1) -> None:
        super().__init__(cache_size=cache_size)
        self.parts = list(parts)
        if not self.parts:
            raise ValueError("parts: expected at least one transform, got none.")
        for i, part in enumerate(self.parts):
            if isinstance(part, nn.Module):
                self.add_module(str(i), part)

    @constraints.dependent_property(is_discrete=False)
    def domain(self) -> constraints.Constraint:
        return ComposeTransform(self.parts).domain

    @constraints.dependent_property(is_discrete=False)
    def codomain(self) -> constraints.Constraint:
        return ComposeTransform(self.parts).codomain

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        event_dim = self.domain.event_dim
        total = x.new_zeros(())
        for part in self.parts:
            x, ladj = call_and_ladj(part, x)
            total = total + _sum_rightmost(ladj, event_dim - part.domain.event_dim)
            event_dim += part.codomain.event_dim - part.domain.event_dim
        return x, total

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        event_dim = self.codomain.event_dim
        total = y.new_zeros(())
        for part in reversed(self.parts):
            y, ladj = inverse_and_ladj(part, y)
            event_dim += part.domain.event_dim - part.codomain.event_dim
            total = total + _sum_rightmost(ladj, event_dim - part.domain.event_dim)
        return y, total

    def _call(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part._call(x) if _ours(part) else part(x)
        return x

    def _inverse(self, y: Tensor) -> Tensor:
        for part in reversed(self.parts):
            y = part._inverse(y) if _ours(part) else part.inv(y)
        return y

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        for part in self.parts:
            shape = part.forward_shape(shape)
        return shape

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        for part in reversed(self.parts):
            shape = part.inverse_shape(shape)
        return shape


def _ours(part: Transform) -> bool:
    """Whether the part's bare value can be had without filling its cache."""
    return isinstance(part, OnePassTransform | Inverse)
