"""What a composition asks of each of its parts."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class OnePass:
    """A transform that gives its value and log-determinant in one pass, and neither from a cache.

    The transforms of this package are such; :func:`.evaluation.as_one_pass` makes one of any
    other. Shapes: x and y are ``(*batch, *event)``, log-determinants ``batch``.
    """

    context: Tensor | None = None
    """The context of a conditional transform that has been conditioned."""

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
        """x and log|dy/dx| (of the forward direction) at it."""
        raise NotImplementedError

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log|dy/dx| at a pair, which the transform may remember."""
        raise NotImplementedError

    def _call(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _inverse(self, y: Tensor) -> Tensor:
        raise NotImplementedError
