"""The inverse of a TransformModule, as a TransformModule."""

from __future__ import annotations

import copy

import pyro.distributions as dist
from torch import Tensor
from torch.distributions import Transform, constraints

from ...rebuilding import Rebuildable
from ..summaries.method import Summarized
from .evaluation import as_one_pass, clear_cache
from .inverse_memory import InverseMemory
from .one_pass import OnePass


class Inverse(Rebuildable, InverseMemory, Summarized, OnePass, dist.TransformModule):
    """The inverse of a transform; it shares and registers the transform's parameters.

    torch's own ``t.inv`` is not a module: ``ComposeTransformModule([t.inv])`` registers no
    parameters, so that an optimizer trains nothing.

    Args:
        transform: a bijective transform of this package, Pyro or torch.

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
    is_inverse = True

    def __init__(self, transform: Transform) -> None:
        if not transform.bijective:
            raise ValueError(f"transform: expected a bijection, got {transform!r}.")
        super().__init__()
        self.transform = transform
        if isinstance(transform, InverseMemory):
            transform.remember_inverse(self)

    @constraints.dependent_property(is_discrete=False)
    def domain(self) -> constraints.Constraint:
        return self._inner.codomain

    @constraints.dependent_property(is_discrete=False)
    def codomain(self) -> constraints.Constraint:
        return self._inner.domain

    @property
    def event_dims(self) -> tuple[int, int]:
        """Event dimensions of the domain and of the codomain."""
        before, after = self._inner.event_dims
        return after, before

    @property
    def _inner(self) -> OnePass:
        return as_one_pass(self.transform)

    @property
    def inv(self) -> Transform:
        """The transform that this is the inverse of."""
        return self.transform

    # transforms of this package cache their last pass; the caches of others are bypassed

    def __call__(self, x: Tensor) -> Tensor:
        """The transform x => y."""
        return self.transform._inv_call(x) if self._has_safe_cache else self._call(x)

    def _inv_call(self, y: Tensor) -> Tensor:
        return self.transform(y) if self._has_safe_cache else self._inverse(y)

    @property
    def _has_safe_cache(self) -> bool:
        return isinstance(self.transform, OnePass)

    def _call(self, x: Tensor) -> Tensor:
        return self._inner._inverse(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return self._inner._call(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log|dy/dx|, shape ``x.shape[:-domain.event_dim]``."""
        return -self._inner.log_abs_det_jacobian(y, x)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y and log|dy/dx|, in one pass."""
        y, ladj = self._inner.inverse_and_ladj(x)
        return y, -ladj

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """x and log|dy/dx| at x, in one pass."""
        x, ladj = self._inner.call_and_ladj(y)
        return x, -ladj

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.transform.inverse_shape(shape)

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.transform.forward_shape(shape)

    def with_cache(self, cache_size: int = 1) -> Inverse:
        """A copy with another cache size that shares the parameters."""
        if not self._has_safe_cache:  # the cache of any other transform is bypassed anyway
            return self
        cached = self.transform.with_cache(cache_size)
        if cached is self.transform:
            return self
        other = copy.copy(self)
        other._modules = {**self._modules, "transform": cached}
        cached.remember_inverse(other)
        return other

    def clear_cache(self) -> None:
        """Discard the cached pass of the transform inside."""
        clear_cache(self.transform)
