"""A separate transform for each half of an event."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.distributions import Transform, constraints

from ..core.checks import check_event_shape
from ..core.compose import Compose
from ..core.evaluation import call_and_ladj, event_dims, inverse_and_ladj, sum_rightmost
from ..core.one_pass_transform import OnePassTransform
from .masks import Mask

Evaluate = Callable[[Transform, Tensor], tuple[Tensor, Tensor]]


class OnHalves(OnePassTransform):
    r"""One transform for each half of an event, :math:`(a, b) \mapsto (f(a), g(b))`.

    Args:
        mask: splits the event.
        kept: f, a bijection of the half that the mask keeps, or of its entries.
        changed: g, a bijection of the other half, or of its entries.
        cache_size: 0 or 1.

    Raises:
        ValueError: if f or g has more event dimensions than the mask.

    Example:
        >>> import torch
        >>> from pyro_resflow.transforms import ActNorm, Checkerboard, OnHalves, initialize
        >>> t = OnHalves(Checkerboard((2, 4, 4)), ActNorm(2, event_dim=3), ActNorm(2, event_dim=3))
        >>> initialize(t, torch.randn(16, 2, 4, 4))
        >>> t(torch.randn(7, 2, 4, 4)).shape
        torch.Size([7, 2, 4, 4])
    """

    def __init__(
        self, mask: Mask, kept: Transform, changed: Transform, *, cache_size: int = 1
    ) -> None:
        super().__init__(cache_size=cache_size)
        self.mask = mask
        self.kept = _checked_module("kept", kept, len(mask.event_shape))
        self.changed = _checked_module("changed", changed, len(mask.event_shape))

    @constraints.dependent_property(is_discrete=False)
    def domain(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.mask.event_shape))

    codomain = domain

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._transform_halves("x", x, call_and_ladj)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._transform_halves("y", y, inverse_and_ladj)

    def _inverse(self, y: Tensor) -> Tensor:
        return self.inverse_and_ladj(y)[0]

    def _transform_halves(self, name: str, x: Tensor, one_pass: Evaluate) -> tuple[Tensor, Tensor]:
        check_event_shape(name, x, self.mask.event_shape)
        kept, changed = self.mask.split(x)
        kept, first = self._transform_half(self.kept, kept, one_pass)
        changed, second = self._transform_half(self.changed, changed, one_pass)
        return self.mask.merge(kept, changed), first + second

    def _transform_half(
        self, transform: Transform, x: Tensor, one_pass: Evaluate
    ) -> tuple[Tensor, Tensor]:
        y, ladj = one_pass(transform, x)
        return y, sum_rightmost(ladj, len(self.mask.event_shape) - event_dims(transform)[0])


def _checked_module(name: str, transform: Transform, event_dim: int) -> Transform:
    """Check a transform's event dimensions; make it a module, so that its parameters register."""
    if max(event_dims(transform)) > event_dim:
        raise ValueError(
            f"{name}: expected a transform with at most {event_dim} event dimensions, as the mask "
            f"has, got one with {max(event_dims(transform))}."
        )
    return transform if isinstance(transform, nn.Module) else Compose([transform])
