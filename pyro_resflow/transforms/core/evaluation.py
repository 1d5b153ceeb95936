"""Evaluate transforms of this package, Pyro and torch, and their compositions, in one pass."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from functools import cached_property
from typing import Any, cast

import pyro.distributions as dist
from torch import Tensor
from torch.distributions import ComposeTransform, Transform, constraints

from .cache import RemembersLastPass
from .checks import check_dtype
from .deferred import Deferred
from .features import is_recording, record
from .inside import inside
from .one_pass import OnePass
from .stacks import stacks_of, sum_of_log_determinants

COMPOSITIONS = (ComposeTransform, dist.transforms.ComposeTransformModule)
"""torch's and Pyro's compositions. Their own log-determinant evaluates their parts a second time
at every level, and their own domain computes the domain of each part five times."""

_FOREIGN_LOCK = threading.RLock()
"""Held while a transform of Pyro or torch computes, because all threads share its cache."""


def as_one_pass(transform: Transform) -> OnePass:
    """The transform itself if it belongs to this package, else a wrapper with one-pass methods."""
    if isinstance(transform, OnePass):
        return transform
    if type(transform) in COMPOSITIONS:
        return Composition(transform)
    return Foreign(transform)


def value(transform: Transform, x: Tensor) -> Tensor:
    """transform(x), without the log-determinant and without caching."""
    return as_one_pass(transform)._call(x)


def inverse_value(transform: Transform, y: Tensor) -> Tensor:
    """transform.inv(y), without the log-determinant and without caching."""
    return as_one_pass(transform)._inverse(y)


def call_and_ladj(transform: Transform, x: Tensor) -> tuple[Tensor, Tensor]:
    """y = transform(x) and log|dy/dx|, in one pass if the transform supports that."""
    return as_one_pass(transform).call_and_ladj(x)


def inverse_and_ladj(transform: Transform, y: Tensor) -> tuple[Tensor, Tensor]:
    """x = transform.inv(y) and log|dy/dx|, in one pass if the transform supports that."""
    return as_one_pass(transform).inverse_and_ladj(y)


def event_dims(transform: Transform) -> tuple[int, int]:
    """Event dimensions of a transform's domain and codomain."""
    return as_one_pass(transform).event_dims


class Foreign(OnePass):
    """A wrapper of a transform of Pyro, torch or zuko that clears its cache after each call.

    Such a cache compares only the identity of the input. It is stale after an optimizer step, and
    it prevents copies of the transform.

    Args:
        transform: the transform.
    """

    def __init__(self, transform: Transform) -> None:
        self.transform: Any = transform

    @property
    def domain(self) -> constraints.Constraint:
        return self.transform.domain

    @property
    def codomain(self) -> constraints.Constraint:
        return self.transform.codomain

    @property
    def event_dims(self) -> tuple[int, int]:
        return self.domain.event_dim, self.codomain.event_dim

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self._implements("call_and_ladj"):
            with self._dtype_check("x", x):
                y, ladj = self.transform.call_and_ladj(x)
            return y, ladj
        with _FOREIGN_LOCK, self._dtype_check("x", x):
            y = self.transform(x)
            ladj = self.transform.log_abs_det_jacobian(x, y)
            clear_cache(self.transform)
        return y, ladj

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        if self._implements("inverse_and_ladj"):
            with self._dtype_check("y", y):
                x, ladj = self.transform.inverse_and_ladj(y)
            return x, ladj
        with _FOREIGN_LOCK, self._dtype_check("y", y):
            x = self.transform.inv(y)
            ladj = self.transform.log_abs_det_jacobian(x, y)
            clear_cache(self.transform)
        return x, ladj

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        with _FOREIGN_LOCK, self._dtype_check("x", x):
            ladj: Tensor = self.transform.log_abs_det_jacobian(x, y)
            clear_cache(self.transform)
        return ladj

    def _call(self, x: Tensor) -> Tensor:
        with _FOREIGN_LOCK, self._dtype_check("x", x):
            y: Tensor = self.transform(x)
            clear_cache(self.transform)
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        with _FOREIGN_LOCK, self._dtype_check("y", y):
            x: Tensor = self.transform.inv(y)
            clear_cache(self.transform)
        return x

    def _dtype_check(self, name: str, x: Tensor) -> _DtypeCheckOnError:
        return _DtypeCheckOnError(name, x, self.transform)

    def _implements(self, method: str) -> bool:
        """Whether the class defines a method; zuko adds defaults to torch's base class."""
        own = getattr(type(self.transform), method, None)
        return own is not getattr(Transform, method, None)


class _DtypeCheckOnError:
    """A context that replaces torch's errors on inputs of another dtype by our own.

    It runs ``check_dtype`` only after a failure, since some foreign transforms accept inputs of
    another dtype.
    """

    def __init__(self, name: str, x: Tensor, transform: object) -> None:
        self.arguments = name, x, transform

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RuntimeError):
            check_dtype(*self.arguments)


class Composition(OnePass):
    """A wrapper of torch's or Pyro's composition.

    It reads the parts at each call, because the composition may change.

    Args:
        transform: the composition.
    """

    def __init__(self, transform: Transform) -> None:
        self.transform: Any = transform

    def _steps(self) -> Steps:
        parts: list[Transform] = []
        waiting = [*self.transform.parts][::-1]
        while waiting:
            part = waiting.pop()
            if type(part) in COMPOSITIONS:
                waiting.extend(reversed(cast(Any, part).parts))
            else:
                parts.append(part)
        return Steps(parts)

    @property
    def domain(self) -> constraints.Constraint:
        return self._steps().domain

    @property
    def codomain(self) -> constraints.Constraint:
        return self._steps().codomain

    @property
    def event_dims(self) -> tuple[int, int]:
        return self._steps().event_dims

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._steps().call_and_ladj(x)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._steps().inverse_and_ladj(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self._steps().call_and_ladj(x)[1]

    def _call(self, x: Tensor) -> Tensor:
        return self._steps()._call(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return self._steps()._inverse(y)


class Steps:
    """A sequence of transforms; the wrapper and event dimensions of each are computed once.

    Args:
        parts: the transforms.
    """

    def __init__(self, parts: Iterable[Transform]) -> None:
        self.parts = tuple(parts)
        self.passes = [as_one_pass(part) for part in self.parts]

    def _call(self, x: Tensor) -> Tensor:
        recording = is_recording()
        for part, each in zip(self.parts, self.passes, strict=True):
            x = each._call(x)
            if recording:
                self._record(part, x)
        return x

    def _inverse(self, y: Tensor) -> Tensor:
        for each in reversed(self.passes):
            y = each._inverse(y)
        return y

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The value and log|dy/dx|."""
        total = x.new_zeros(x.shape[: x.dim() - self.event_dims[0]])
        recording = is_recording()
        later: list[tuple[int, Deferred]] = []
        for part, each, extra, stack in zip(
            self.parts, self.passes, self._extra_dims, self._stacks(x, 0), strict=True
        ):
            if stack is not None:
                x, deferred = each.call_deferring(x)
                later.append((stack, deferred))
            else:
                x, ladj = each.call_and_ladj(x)
                total = total + (sum_rightmost(ladj, extra) if extra else ladj)
            if recording:
                self._record(part, x)
        return x, total + sum_of_log_determinants(later) if later else total

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse x of y, and log|dy/dx| at x."""
        total = y.new_zeros(y.shape[: y.dim() - self.event_dims[1]])
        later: list[tuple[int, Deferred]] = []
        for each, extra, stack in zip(
            self.passes[::-1], self._extra_dims[::-1], self._stacks(y, 1)[::-1], strict=True
        ):
            if stack is not None:
                y, deferred = each.inverse_deferring(y)
                later.append((stack, deferred))
            else:
                y, ladj = each.inverse_and_ladj(y)
                total = total + (sum_rightmost(ladj, extra) if extra else ladj)
        return y, total + sum_of_log_determinants(later) if later else total

    def _stacks(self, x: Tensor, end: int) -> list[int | None]:
        """The stack of each part that defers its log-determinant, see :mod:`.stacks`.

        Parts whose events have fewer dimensions than those of the sequence compute theirs.

        Args:
            x: the input.
            end: 0 if it is in the domain, 1 if it is in the codomain.
        """
        found = stacks_of(self.passes, x, self.event_dims[end])
        pairs = zip(found, self._extra_dims, strict=True)
        return [None if extra else stack for stack, extra in pairs]

    @property
    def domain(self) -> constraints.Constraint:
        """The domain of the first part, with the event dimensions of the whole."""
        return _with_event_dim(self.passes[0].domain, self.event_dims[0])

    @property
    def codomain(self) -> constraints.Constraint:
        """The codomain of the last part, with the event dimensions of the whole."""
        return _with_event_dim(self.passes[-1].codomain, self.event_dims[1])

    @cached_property
    def event_dims(self) -> tuple[int, int]:
        """The smallest event dimensions of domain and codomain that fit all parts."""
        first = last = 0
        for before, after in reversed(self._dims):
            first = max(first + before - after, before)
        for before, after in self._dims:
            last = max(last + after - before, after)
        return first, last

    @cached_property
    def _dims(self) -> list[tuple[int, int]]:
        return [each.event_dims for each in self.passes]

    @cached_property
    def _extra_dims(self) -> list[int]:
        """For each part, how many more event dimensions the whole has at its input."""
        extra = []
        event_dim = self.event_dims[0]
        for before, after in self._dims:
            extra.append(event_dim - before)
            event_dim += after - before
        return extra

    @staticmethod
    def _record(part: Transform, x: Tensor) -> None:
        if not hasattr(part, "parts"):  # a composition records its own parts
            record(part, x)


def _with_event_dim(constraint: constraints.Constraint, event_dim: int) -> constraints.Constraint:
    more = event_dim - constraint.event_dim
    return constraints.independent(constraint, more) if more else constraint


def sum_rightmost(entries: Tensor, number: int) -> Tensor:
    """Sum over the last ``number`` dimensions; unlike torch's helper it allows empty batches."""
    return entries.sum(tuple(range(-number, 0))) if number else entries


def clear_cache(flow: object) -> None:
    """Discard the cached passes of a flow and of the transforms inside it."""
    for part in inside(flow):
        if isinstance(part, RemembersLastPass):
            part._forget()
        if isinstance(part, Transform):
            for name in vars(part):
                if name.startswith("_cache") and name != "_cache_size":
                    setattr(part, name, (None, None) if name == "_cached_x_y" else None)
