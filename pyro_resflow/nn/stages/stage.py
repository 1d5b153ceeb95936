r"""What a stage is: one step in which a network is evaluated.

A layer breaks into stages (:meth:`Layer.stages`): affine maps, elementwise functions, scalings.
:func:`folded` multiplies the scalings into the affine maps beside them, so that each saves a pass
over the features. A stage does not hold the tensors that it depends on. It is given its input and
its coefficients, which are all tensors that may want a gradient, and returns tensors.

Shapes: x is ``(N, *features)``; tangents v and cotangents w are ``(S, N, *features)``, or
``(N, *features)`` if there is one for each sample. The cotangents of a value and of S tangents
stand in one tensor, ``(1 + S, N, *features)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

Gain = Callable[[], Tensor | float]
"""Gives a scalar: a parameter may change between two passes."""

Gradients = tuple[Tensor | None, ...]
Saved = TypeVar("Saved")
Method = TypeVar("Method", bound=Callable[..., Any])


class Layer(Protocol):
    """What a chain asks of its layers."""

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

    ``Saved`` is the type of what :meth:`linearize` keeps for the products with the Jacobian J.
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
        """The value at x, and what the products below need."""
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
        """The saved values, with copies of input and value if :meth:`dual_vjp` writes there.

        The first input of a network and its last value belong to the caller as well.
        """
        return saved

    def dual_vjp(
        self, saved: Saved, v: Tensor, cotangents: Tensor, needed: Sequence[bool]
    ) -> tuple[Tensor, Gradients]:
        """Pull cotangents of (value, J v) back to (x, v) and to the coefficients.

        It may overwrite the saved values, v and the cotangents: writing to new memory is slow.

        Args:
            saved: from :meth:`linearize`.
            v: the tangents that went in.
            cotangents: of the value and of the tangents that came out.
            needed: for each coefficient, whether it wants a gradient.

        Returns:
            The cotangents of x and v, stacked in the same way, and the coefficients' gradients.
        """
        raise NotImplementedError


NONE: Mapping[Gain, Tensor | float] = {}


def product(gains: Iterable[Gain], known: Mapping[Gain, Tensor | float] = NONE) -> Tensor | float:
    """The product of gains, 1.0 if there are none.

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
