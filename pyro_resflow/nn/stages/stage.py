r"""Stages, the steps in which a network is evaluated.

A layer breaks into stages (:meth:`Layer.stages`): affine maps, elementwise functions, scalings.
:func:`folded` multiplies the scalings into neighbouring affine maps, so that each saves a pass
over the features. A stage does not hold the tensors that it depends on. Its methods take its input
and its coefficients, which are all tensors that may need a gradient, and return tensors.

Shapes: x is ``(N, *features)``; tangents v and cotangents w are ``(S, N, *features)``, or
``(N, *features)`` if there is one for each sample. The cotangents of a value and of S tangents
are stacked in one tensor, ``(1 + S, N, *features)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

Gain = Callable[[], Tensor | float]
"""Returns a scalar; a function, because a parameter may change between two passes."""

Gradients = tuple[Tensor | None, ...]
Saved = TypeVar("Saved")
Method = TypeVar("Method", bound=Callable[..., Any])


class Layer(Protocol):
    """The interface of a chain's layers."""

    def stages(self) -> list[Stage[Any]]:
        """The stages of the layer, in order."""


def reusable(stages: Method) -> Method:
    """Mark a layer's method ``stages`` whose stages a chain may reuse from call to call.

    Such stages read parameters, gains and settings when they are evaluated, not when they are
    built. A chain rebuilds all other stages for each evaluation.
    """
    stages.is_reusable = True  # type: ignore[attr-defined]
    return stages


class Stage(Generic[Saved]):
    """One step of a network, with its first and second derivatives.

    ``Saved`` is the type of the values that :meth:`linearize` saves for products with J.
    """

    size: int = 0
    """Number of coefficients."""

    layers: tuple[object, ...] = ()
    """The layers whose effective weights are among the coefficients."""

    def coefficients(self) -> tuple[Tensor, ...]:
        """The tensors that the stage depends on, differentiable where parameters are."""
        return ()

    def evaluate(self, x: Tensor, *coefficients: Tensor) -> Tensor:
        """The value at x."""
        raise NotImplementedError

    def linearize(self, x: Tensor, *coefficients: Tensor) -> tuple[Tensor, Saved]:
        """The value at x, and the values saved for the products below."""
        raise NotImplementedError

    def vjp(self, saved: Saved, w: Tensor) -> Tensor:
        """J^T w."""
        raise NotImplementedError

    def vjp_(self, saved: Saved, w: Tensor) -> Tensor:
        """J^T w, which may overwrite w."""
        return self.vjp(saved, w)

    def jvp(self, saved: Saved, v: Tensor) -> Tensor:
        """J v."""
        raise NotImplementedError

    def unshared(self, saved: Saved) -> Saved:
        """The saved values, with copies of input and value if :meth:`dual_vjp` overwrites them.

        The caller also holds the first input of a network and its last value.
        """
        return saved

    def dual_vjp(
        self, saved: Saved, v: Tensor, cotangents: Tensor, needed: Sequence[bool]
    ) -> tuple[Tensor, Gradients]:
        """Pull cotangents of (value, J v) back to (x, v) and to the coefficients.

        It may overwrite the saved values, v and the cotangents: writing to new memory is slow.

        Args:
            saved: from :meth:`linearize`.
            v: the input tangents.
            cotangents: the cotangents of the value and of the output tangents, stacked.
            needed: for each coefficient, whether its gradient is needed.

        Returns:
            The cotangents of x and v, stacked in the same way, and the coefficients' gradients.
        """
        raise NotImplementedError


NONE: Mapping[Gain, Tensor | float] = {}


def product(gains: Iterable[Gain], known: Mapping[Gain, Tensor | float] = NONE) -> Tensor | float:
    """The product of gains; 1.0 if there are no gains.

    Args:
        gains: the gains.
        known: values of gains that have been computed already.
    """
    total: Tensor | float = 1.0
    for gain in gains:
        factor = known[gain] if gain in known else gain()
        total = factor if isinstance(total, float) and total == 1.0 else total * factor
    return total


def scaled(x: Tensor, gain: Tensor | float) -> Tensor:
    """x times a gain; x itself if the gain is 1.0."""
    return x if isinstance(gain, float) and gain == 1.0 else x * gain


def inner_product(cotangents: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """The sum of the products of cotangents with value x and tangents v."""
    return (cotangents[0] * x).sum() + (cotangents[1:] * v).sum()
