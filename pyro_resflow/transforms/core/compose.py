"""Compositions of transforms, evaluated in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from contextvars import ContextVar
from operator import is_
from typing import Any

from torch import Tensor, nn
from torch.distributions import ComposeTransform, Transform, constraints
from torch.distributions.transforms import _InverseTransform

from ...nn import NonFiniteWeightError
from ...nn.lipschitz.update import norms_updated
from ...nn.networks.chain import prepared_together
from ...precision import HalfPrecisionError
from .evaluation import Steps
from .inverse import Inverse
from .one_pass_transform import OnePassTransform

_MEASURED: ContextVar[bool] = ContextVar("measured", default=False)
"""Whether an enclosing composition has measured the norms of all layers inside it."""


@contextmanager
def once(
    module: nn.Module, together: Callable[[nn.Module], AbstractContextManager[None]]
) -> Iterator[None]:
    """Enter a context for the layers inside a module, unless an enclosing module already has.

    Layers outside the enclosing module measure their norms when they are used.

    Args:
        module: the module.
        together: measures the norms of all layers inside it, at least.
    """
    if _MEASURED.get():
        yield
        return
    token = _MEASURED.set(True)
    try:
        with together(module):
            yield
    finally:
        _MEASURED.reset(token)


class MeasuredTogether(nn.Module):
    """A module that measures the norms of its layers together, when saved and when called.

    Measuring one layer at a time gives other rounding errors. Saving that way in the middle of a
    training run would therefore change how the run continues.
    """

    def state_dict(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        """Measure the norms, then return :meth:`torch.nn.Module.state_dict`."""
        with ExitStack() as measured:
            # a flow that cannot be used, because it diverged for instance, can still be saved
            with suppress(NonFiniteWeightError, HalfPrecisionError):
                measured.enter_context(once(self, norms_updated))
            return super().state_dict(*args, **kwargs)


class Compose(MeasuredTogether, OnePassTransform):
    """A sequence of transforms, whose value and log-determinant come from a single pass.

    In torch's ``ComposeTransform`` every part caches its last pair. This one caches only its own
    input and output, needs no second pass for the log-determinant in either direction, and its
    inverse is a module that registers its parameters.

    Args:
        parts: bijective transforms of this package, Pyro or torch; at least one.
        cache_size: 0 or 1.

    Raises:
        ValueError: without parts, or for a part that is not a bijective transform.

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
        """The evaluation steps of the parts, rebuilt after a part has been replaced."""
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
        with once(self, prepared_together):
            return self._steps().call_and_ladj(x)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        with once(self, prepared_together):
            return self._steps().inverse_and_ladj(y)

    def _call(self, x: Tensor) -> Tensor:
        with once(self, prepared_together):
            return self._steps()._call(x)

    def _inverse(self, y: Tensor) -> Tensor:
        with once(self, prepared_together):
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
    """Flatten nested compositions, and turn every part that has parameters into a module.

    torch's own compositions and inverses are not modules, so that the parameters of the transforms
    inside them would not be registered.
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
