"""Evaluate any transform in one pass: ours, Pyro's, torch's, and compositions of all of them."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from functools import cached_property
from typing import Any, cast

import pyro.distributions as dist
from torch import Tensor
from torch.distributions import ComposeTransform, Transform, constraints

from .base import OnePassTransform
from .determinism import inside
from .features import show

COMPOSITIONS = (ComposeTransform, dist.transforms.ComposeTransformModule)
"""torch's and Pyro's compositions. Their own log-determinant evaluates what they hold a second
time at every level, and their own domain asks each part for its domain five times."""

_OTHERS = threading.RLock()
"""Held while one of Pyro's own transforms computes, which keep what they last computed for all."""


def value(transform: Transform, x: Tensor) -> Tensor:
    """transform(x) alone, which leaves nothing in a cache."""
    if _keeps_nothing(transform):
        return transform._call(x)
    if (steps := Steps.of(transform)) is not None:
        return steps.call(x)
    with _OTHERS:
        y = transform(x)
        clear_cache(transform)
    return y


def inverse_value(transform: Transform, y: Tensor) -> Tensor:
    """transform.inv(y) alone, which leaves nothing in a cache."""
    if _keeps_nothing(transform):
        return transform._inverse(y)
    if (steps := Steps.of(transform)) is not None:
        return steps.inverse(y)
    with _OTHERS:
        x = transform.inv(y)
        clear_cache(transform)
    return x


def call_and_ladj(transform: Transform, x: Tensor) -> tuple[Tensor, Tensor]:
    """y = transform(x) and log|dy/dx|, in one pass where the transform offers it."""
    if (steps := Steps.of(transform)) is not None:
        return steps.call_and_ladj(x)
    if _offers(transform, "call_and_ladj"):
        return cast(Any, transform).call_and_ladj(x)
    with _OTHERS:
        y = transform(x)
        ladj = transform.log_abs_det_jacobian(x, y)
        clear_cache(transform)
    return y, ladj


def inverse_and_ladj(transform: Transform, y: Tensor) -> tuple[Tensor, Tensor]:
    """x = transform.inv(y) and log|dy/dx|, in one pass where the transform offers it."""
    if (steps := Steps.of(transform)) is not None:
        return steps.inverse_and_ladj(y)
    if _offers(transform, "inverse_and_ladj"):
        return cast(Any, transform).inverse_and_ladj(y)
    with _OTHERS:
        x = transform.inv(y)
        ladj = transform.log_abs_det_jacobian(x, y)
        clear_cache(transform)
    return x, ladj


def log_abs_det(transform: Transform, x: Tensor, y: Tensor) -> Tensor:
    """log|dy/dx| at a pair that the transform may remember, if it is one of ours."""
    if _keeps_nothing(transform):
        return transform.log_abs_det_jacobian(x, y)
    if (steps := Steps.of(transform)) is not None:
        return steps.call_and_ladj(x)[1]
    with _OTHERS:
        ladj = transform.log_abs_det_jacobian(x, y)
        clear_cache(transform)
    return ladj


class Nested:
    """A transform whose domain and codomain are those of the transforms inside it."""

    @cached_property
    def event_dims(self) -> tuple[int, int]:
        """Event dimensions of the domain and of the codomain, worked out once."""
        return self._event_dims()

    def _event_dims(self) -> tuple[int, int]:
        raise NotImplementedError


class Steps:
    """Transforms one after the other, torch's and Pyro's compositions among them taken apart.

    Args:
        parts: the transforms.
    """

    def __init__(self, parts: Iterable[Transform]) -> None:
        self.parts: list[Transform] = []
        waiting = [*parts][::-1]
        while waiting:
            part = waiting.pop()
            if type(part) in COMPOSITIONS:
                waiting.extend(reversed(cast(Any, part).parts))
            else:
                self.parts.append(part)

    @classmethod
    def of(cls, transform: Transform) -> Steps | None:
        """The steps of one of torch's or Pyro's compositions, ``None`` of anything else."""
        composed = type(transform) in COMPOSITIONS
        return cls(cast(Any, transform).parts) if composed else None

    def call(self, x: Tensor) -> Tensor:
        """The value alone."""
        for part in self.parts:
            x = value(part, x)
            self._show(part, x)
        return x

    def inverse(self, y: Tensor) -> Tensor:
        """The inverse's value alone."""
        for part in reversed(self.parts):
            y = inverse_value(part, y)
        return y

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The value and log|dy/dx|."""
        event_dim = self.event_dims()[0]
        total = x.new_zeros(x.shape[: x.dim() - event_dim])
        for part in self.parts:
            x, ladj = call_and_ladj(part, x)
            self._show(part, x)
            before, after = event_dims(part)
            total = total + sum_rightmost(ladj, event_dim - before)
            event_dim += after - before
        return x, total

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse's value and log|dy/dx| at it."""
        event_dim = self.event_dims()[1]
        total = y.new_zeros(y.shape[: y.dim() - event_dim])
        for part in reversed(self.parts):
            y, ladj = inverse_and_ladj(part, y)
            before, after = event_dims(part)
            event_dim += before - after
            total = total + sum_rightmost(ladj, event_dim - before)
        return y, total

    @property
    def domain(self) -> constraints.Constraint:
        """What the first of them takes, its event as large as that of all of them."""
        return _widened(self.parts[0].domain, self.event_dims()[0])

    @property
    def codomain(self) -> constraints.Constraint:
        """What the last of them returns, its event as large as that of all of them."""
        return _widened(self.parts[-1].codomain, self.event_dims()[1])

    def event_dims(self) -> tuple[int, int]:
        """Event dimensions of the domain and of the codomain: the smallest that suit all parts."""
        dims = [event_dims(part) for part in self.parts]
        first = last = 0
        for before, after in reversed(dims):
            first = max(first + before - after, before)
        for before, after in dims:
            last = max(last + after - before, after)
        return first, last

    @staticmethod
    def _show(part: Transform, x: Tensor) -> None:
        if not hasattr(part, "parts"):  # a composition shows what leaves its own parts
            show(part, x)


def _widened(constraint: constraints.Constraint, event_dim: int) -> constraints.Constraint:
    more = event_dim - constraint.event_dim
    return constraints.independent(constraint, more) if more else constraint


def event_dims(transform: Transform) -> tuple[int, int]:
    """Event dimensions of a transform's domain and codomain.

    Compositions and inverses of ours work them out once: a domain asks the transforms inside, and
    asked anew at every level of a nest the work would double with each.
    """
    if (steps := Steps.of(transform)) is not None:
        return steps.event_dims()
    if isinstance(transform, Nested):
        return transform.event_dims
    return transform.domain.event_dim, transform.codomain.event_dim


def domain(transform: Transform) -> constraints.Constraint:
    """A transform's domain; each part of torch's and Pyro's compositions is asked once."""
    return (Steps.of(transform) or transform).domain


def codomain(transform: Transform) -> constraints.Constraint:
    """A transform's codomain, in the same way."""
    return (Steps.of(transform) or transform).codomain


def sum_rightmost(entries: Tensor, number: int) -> Tensor:
    """The sum over the last dimensions, that many; torch's own takes no empty batches."""
    return entries.sum(tuple(range(-number, 0))) if number else entries


def clear_cache(flow: object) -> None:
    """Forget what a flow, and the transforms inside it, remember of their last evaluation.

    Pyro's own transforms find their last result again by identity alone: after an optimizer step
    it is stale, and it keeps them from being copied. So none of them keeps one in our hands.
    """
    for part in inside(flow):
        if isinstance(part, OnePassTransform):
            part._forget()
        if isinstance(part, Transform):
            for name in vars(part):
                if name.startswith("_cache") and name != "_cache_size":
                    setattr(part, name, (None, None) if name == "_cached_x_y" else None)


def _keeps_nothing(transform: Transform) -> bool:
    """Whether ``_call`` and ``_inverse`` of a transform leave nothing in a cache."""
    return isinstance(transform, OnePassTransform) or hasattr(transform, "remembers_nothing")


def _offers(transform: Transform, method: str) -> bool:
    """Whether a class has a method of its own, beside those that zuko gives every transform."""
    return getattr(type(transform), method, None) is not getattr(Transform, method, None)
