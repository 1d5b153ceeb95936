"""The inverse of a TransformModule, as a TransformModule."""

from __future__ import annotations

import copy

import pyro.distributions as dist
from torch import Tensor
from torch.distributions import Transform, constraints

from ...rebuilding import Rebuildable
from .base import InverseMemory, OnePassTransform
from .evaluation import (
    Nested,
    call_and_ladj,
    clear_cache,
    codomain,
    domain,
    event_dims,
    inverse_and_ladj,
    inverse_value,
    log_abs_det,
    value,
)


class Inverse(Nested, Rebuildable, InverseMemory, dist.TransformModule):
    """A transform run backwards; its parameters are the transform's.

    torch's own ``t.inv`` is no module: ``ComposeTransformModule([t.inv])`` registers nothing, and
    an optimizer trains nothing. This one registers.

    Args:
        transform: a bijective transform, one of ours or one of Pyro's.

    Raises:
        ValueError: if the transform is not a bijection.

    Example:
        >>> import pyro.distributions.transforms as T
        >>> from pyro_resflow.transforms import Inverse
        >>> t = T.planar(2)
        >>> len(list(Inverse(t).parameters())) == len(list(t.parameters()))
        True
        >>> Inverse(t).inv is t
        True
    """

    bijective = True
    remembers_nothing = True
    """What it has evaluated is remembered by the transform inside, if at all."""

    def __init__(self, transform: Transform) -> None:
        if not transform.bijective:
            raise ValueError(f"transform: expected a bijection, got {transform}.")
        super().__init__()
        self.transform = transform
        if isinstance(transform, InverseMemory):
            transform.remember_inverse(self)

    @constraints.dependent_property(is_discrete=False)
    def domain(self) -> constraints.Constraint:
        return codomain(self.transform)

    @constraints.dependent_property(is_discrete=False)
    def codomain(self) -> constraints.Constraint:
        return domain(self.transform)

    def _event_dims(self) -> tuple[int, int]:
        before, after = event_dims(self.transform)
        return after, before

    @property
    def inv(self) -> Transform:
        """The transform that this one inverts."""
        return self.transform

    def __call__(self, x: Tensor) -> Tensor:
        """The transform x => y."""
        return self.transform._inv_call(x) if self._ours else self._call(x)

    def _inv_call(self, y: Tensor) -> Tensor:
        return self.transform(y) if self._ours else self._inverse(y)

    def _call(self, x: Tensor) -> Tensor:
        return inverse_value(self.transform, x)

    def _inverse(self, y: Tensor) -> Tensor:
        return value(self.transform, y)

    @property
    def _ours(self) -> bool:
        return isinstance(self.transform, OnePassTransform | Inverse)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log|dy/dx|, shape ``x.shape[:-domain.event_dim]``."""
        return -log_abs_det(self.transform, y, x)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y and log|dy/dx|, in one pass."""
        y, ladj = inverse_and_ladj(self.transform, x)
        return y, -ladj

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """x and log|dy/dx| at it, in one pass."""
        x, ladj = call_and_ladj(self.transform, y)
        return x, -ladj

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.transform.inverse_shape(shape)

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.transform.forward_shape(shape)

    def with_cache(self, cache_size: int = 1) -> Inverse:
        """This transform, sharing its parameters, with another cache size."""
        if not self._ours:  # one of Pyro's keeps nothing in our hands, whatever its cache size
            return self
        cached = self.transform.with_cache(cache_size)
        if cached is self.transform:
            return self
        other = copy.copy(self)
        other._modules = {**self._modules, "transform": cached}
        cached.remember_inverse(other)
        return other

    def clear_cache(self) -> None:
        """Forget the last pass of the transform inside."""
        clear_cache(self.transform)
