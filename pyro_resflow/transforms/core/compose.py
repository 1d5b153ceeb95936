"""Composition of transforms, evaluated in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from operator import is_
from typing import Any

from torch import Tensor, nn
from torch.distributions import ComposeTransform, Transform, constraints
from torch.distributions.transforms import _InverseTransform

from ...nn import NonFiniteWeightError
from ...nn.lipschitz.update import norms_updated
from ...precision import HalfPrecisionError
from .base import OnePassTransform
from .evaluation import Steps
from .inverse import Inverse

_MEASURED: ContextVar[bool] = ContextVar("measured", default=False)
"""Whether a composition around this one has measured the norms of all layers inside it."""


@contextmanager
def measured_once(module: nn.Module) -> Iterator[None]:
    """Measure the norms inside a module, unless a module around it is doing so already.

    Layers that are no part of the module around measure their own norms when they are used.
    """
    if _MEASURED.get():
        yield
        return
    token = _MEASURED.set(True)
    try:
        with norms_updated(module):
            yield
    finally:
        _MEASURED.reset(token)


class MeasuredTogether(nn.Module):
    """A module that measures the norms inside it together, when it is saved as when it is called.

    One by one, as layers that are saved alone measure theirs, they would come out the same but for
    rounding: a training run that was saved would go on a little differently.
    """

    def state_dict(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        """The state as :meth:`torch.nn.Module.state_dict` gives it, its norms measured first."""
        with ExitStack() as measured:
            # what cannot be used, having diverged for instance, can be saved all the same
            with suppress(NonFiniteWeightError, HalfPrecisionError):
                measured.enter_context(measured_once(self))
            return super().state_dict(*args, **kwargs)


class Compose(MeasuredTogether, OnePassTransform):
    """Transforms one after the other: values and log-determinants gathered in a single pass.

    Unlike a composition whose parts each cache their last pair, it keeps only its own ends in
    memory, needs no second pass for the log-determinant in either direction, and its inverse
    registers its parameters.

    Args:
        parts: bijective transforms, ours, Pyro's or torch's, at least one.
        cache_size: 0 or 1.

    Raises:
        ValueError: without parts, or for a part that is no bijective transform.

    Example:
        >>> import torch
        >>> from pyro_resflow import residual
        >>> from pyro_resflow.transforms import Compose
        >>> flow = Compose([residual(2), residual(2)])
        >>> y, ladj = flow.call_and_ladj(torch.randn(7, 2))
    """

    _known_steps: Steps | None = None

    def __init__(self, parts: Iterable[Transform], *, cache_size: int = 1) -> None:
        super().__init__(cache_size=cache_size)
        self.parts = list(flattened(parts))
        if not self.parts:
            raise ValueError("parts: expected at least one transform, got none.")
        for i, part in enumerate(self.parts):
            if isinstance(part, nn.Module):
                self.add_module(str(i), part)

    @constraints.dependent_property(is_discrete=False)
    def domain(self) -> constraints.Constraint:
        return self._steps().domain

    @constraints.dependent_property(is_discrete=False)
    def codomain(self) -> constraints.Constraint:
        return self._steps().codomain

    @property
    def event_dims(self) -> tuple[int, int]:
        """Event dimensions of the domain and of the codomain."""
        return self._steps().event_dims

    def _steps(self) -> Steps:
        """The parts as they are evaluated, worked out anew when a part has been replaced."""
        known = self._known_steps
        if (
            known is None
            or len(known.parts) != len(self.parts)
            or not all(map(is_, known.parts, self.parts))
        ):
            known = self._known_steps = Steps(self.parts)
        return known

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_known_steps": None}

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with measured_once(self):
            return self._steps().call_and_ladj(x)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        with measured_once(self):
            return self._steps().inverse_and_ladj(y)

    def _call(self, x: Tensor) -> Tensor:
        with measured_once(self):
            return self._steps()._call(x)

    def _inverse(self, y: Tensor) -> Tensor:
        with measured_once(self):
            return self._steps()._inverse(y)

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        for part in self.parts:
            shape = part.forward_shape(shape)
        return shape

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        for part in reversed(self.parts):
            shape = part.inverse_shape(shape)
        return shape


def flattened(parts: Iterable[Transform]) -> Iterator[Transform]:
    """The parts one by one, each a module if there are parameters in it.

    torch's own compositions and inverses are no modules: what is inside would not be registered.
    """
    for part in parts:
        if not isinstance(part, Transform):
            raise ValueError(
                f"parts: expected transforms, got {type(part).__name__}. A conditional transform "
                "has to be conditioned first, or composed with ConditionalCompose."
            )
        if type(part) is ComposeTransform:
            yield from flattened(part.parts)
        elif isinstance(part, _InverseTransform) and isinstance(part.inv, nn.Module):
            yield Inverse(part.inv)
        elif not part.bijective:
            raise ValueError(f"parts: expected bijections, got {part!r}.")
        else:
            yield part
