"""The interface that a composition needs from each of its parts."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .deferred import Deferred, StackKey


class OnePass:
    """A transform that computes its value and log-determinant in one pass, without a cache.

    All transforms of this package implement it; :func:`.evaluation.as_one_pass` wraps any other.
    x and y have shape ``(*batch, *event)`` and log-determinants have shape ``batch``.
    """

    context: Tensor | None = None
    """The context, if this is a conditioned transform."""

    domain: Any
    codomain: Any

    @property
    def event_dims(self) -> tuple[int, int]:
        """Event dimensions of the domain and of the codomain."""
        raise NotImplementedError

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y and log|dy/dx|."""
        raise NotImplementedError

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """x and the forward direction's log|dy/dx| at x."""
        raise NotImplementedError

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log|dy/dx| at a pair; the transform may take it from its cache."""
        raise NotImplementedError

    def _call(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _inverse(self, y: Tensor) -> Tensor:
        raise NotImplementedError

    def stack_key(self) -> StackKey | None:
        """Equal for transforms that can compute their log-determinants together.

        ``None`` for a transform that computes its log-determinant alone. Other transforms
        implement the two methods below.
        """
        return None

    def call_deferring(self, x: Tensor) -> tuple[Tensor, Deferred]:
        """y, and log|dy/dx| to be computed later."""
        raise NotImplementedError

    def inverse_deferring(self, y: Tensor) -> tuple[Tensor, Deferred]:
        """x, and log|dy/dx| to be computed later."""
        raise NotImplementedError
