r"""The steps that a network is evaluated in: affine maps, elementwise functions, scalings.

A layer breaks into stages (:meth:`Layer.stages`); :func:`folded` multiplies the scalings into the
affine maps beside them, so that a pass over the features is saved for each. A stage has no state:
it is given its input and its coefficients, the tensors that it depends on and that may want a
gradient, and gives back tensors.

Shapes: x is ``(N, *features)``; tangents v and cotangents w are ``(S, N, *features)``; bars, the
cotangents of value and tangents together, are ``(1 + S, N, *features)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

Gain = Callable[[], Tensor | float]
Gradients = tuple[Tensor | None, ...]
Saved = tuple[Any, ...]


class Layer(Protocol):
    """What a chain asks of its layers."""

    def stages(self) -> list[Stage]:
        """The stages of the layer, in order."""


class Stage:
    """One step of a network, with its first and second derivatives."""

    size: int = 0
    """Number of coefficients."""

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

    def dual_vjp(
        self, saved: Saved, v: Tensor, bars: Tensor, needed: Sequence[bool]
    ) -> tuple[Tensor, Gradients]:
        """Pull cotangents of (value, J v) back to (x, v) and to the coefficients.

        It may overwrite what was saved, v and bars: memory that is written anew is slow memory.

        Args:
            saved: from :meth:`linearize`.
            v: the tangents that went in.
            bars: cotangents of the value and of the tangents that came out.
            needed: for each coefficient, whether it wants a gradient.

        Returns:
            The cotangents of x and v, stacked as ``bars``, and the coefficients' gradients.
        """
        raise NotImplementedError


class Scale(Stage):
    """x times a scalar.

    Args:
        gains: give the scalars whose product it is.
    """

    size = 1

    def __init__(self, *gains: Gain) -> None:
        self.gains = gains

    def coefficients(self) -> tuple[Tensor, ...]:
        gain = product(self.gains)
        # as_tensor would move a tensor to the default device
        return (gain if isinstance(gain, Tensor) else torch.tensor(gain),)

    def evaluate(self, x: Tensor, *coefficients: Tensor) -> Tensor:
        return x * coefficients[0]

    def linearize(self, x: Tensor, *coefficients: Tensor) -> tuple[Tensor, Saved]:
        return x * coefficients[0], (x, coefficients[0])

    def vjp(self, saved: Saved, w: Tensor) -> Tensor:
        return w * saved[1]

    def jvp(self, saved: Saved, v: Tensor) -> Tensor:
        return v * saved[1]

    def dual_vjp(
        self, saved: Saved, v: Tensor, bars: Tensor, needed: Sequence[bool]
    ) -> tuple[Tensor, Gradients]:
        x, gain = saved
        return bars * gain, (inner_product(bars, x, v) if needed[0] else None,)


class Affine(Stage):
    """A linear operator and a bias, with the gains of the scalings before and after it.

    Args:
        layer: the :class:`LipschitzLayer` that has the weight.
        before: gains of what goes in.
        after: gains of what comes out.
    """

    def __init__(self, layer: Any, before: Sequence[Gain] = (), after: Sequence[Gain] = ()):
        self.layer = layer
        self.before = tuple(before)
        self.after = tuple(after)
        self.size = 1 if layer.bias is None else 2

    def coefficients(self) -> tuple[Tensor, ...]:
        after = product(self.after)
        weight = self.layer.effective_weight(product(self.before) * after)
        bias = self.layer.bias
        return (weight,) if bias is None else (weight, scaled(bias, after))

    def evaluate(self, x: Tensor, *coefficients: Tensor) -> Tensor:
        return self.layer.affine(x, *coefficients)

    def linearize(self, x: Tensor, *coefficients: Tensor) -> tuple[Tensor, Saved]:
        operator = self.layer.operator(coefficients[0])
        return self.layer.affine(x, *coefficients), (x, operator)

    def vjp(self, saved: Saved, w: Tensor) -> Tensor:
        return saved[1].adjoint(w)

    def jvp(self, saved: Saved, v: Tensor) -> Tensor:
        return saved[1].apply(v)

    def dual_vjp(
        self, saved: Saved, v: Tensor, bars: Tensor, needed: Sequence[bool]
    ) -> tuple[Tensor, Gradients]:
        x, operator = saved
        weight = None
        if needed[0]:
            weight = operator.outer(bars[:1], x[None]).add_(operator.outer(bars[1:], v))
        if len(needed) == 1:
            return operator.adjoint(bars), (weight,)
        bias = _sum_to_bias(bars[0], len(operator.codomain)) if needed[1] else None
        return operator.adjoint(bars), (weight, bias)


def inner_product(bars: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """The sum of the products of bars with value and tangents."""
    return (bars[0] * x).sum() + (bars[1:] * v).sum()


def _sum_to_bias(bar: Tensor, event_dim: int) -> Tensor:
    return bar.sum((0, *range(2, 1 + event_dim)))


class Translate(Stage):
    """x plus one constant for each sample, times the gains of the scalings after it.

    Args:
        shift: gives the constant, shape ``(N, features)``.
        after: gains of what comes out.
    """

    size = 1

    def __init__(self, shift: Callable[[], Tensor], after: Sequence[Gain] = ()) -> None:
        self.shift = shift
        self.after = tuple(after)

    def coefficients(self) -> tuple[Tensor, ...]:
        return (scaled(self.shift(), product(self.after)),)

    def evaluate(self, x: Tensor, *coefficients: Tensor) -> Tensor:
        return x + coefficients[0]

    def linearize(self, x: Tensor, *coefficients: Tensor) -> tuple[Tensor, Saved]:
        return x + coefficients[0], ()

    def vjp(self, saved: Saved, w: Tensor) -> Tensor:
        return w

    def jvp(self, saved: Saved, v: Tensor) -> Tensor:
        return v

    def dual_vjp(
        self, saved: Saved, v: Tensor, bars: Tensor, needed: Sequence[bool]
    ) -> tuple[Tensor, Gradients]:
        return bars, (bars[0].clone(),)  # bars may be overwritten on their way


class Core(Stage):
    """An activation's parameter-free core.

    Args:
        core: the :class:`Activation`.
    """

    def __init__(self, core: Any) -> None:
        self.core = core

    def evaluate(self, x: Tensor, *coefficients: Tensor) -> Tensor:
        return self.core.core(x)

    def linearize(self, x: Tensor, *coefficients: Tensor) -> tuple[Tensor, Saved]:
        value = self.core.core(x)
        return value, (x, value, self.core.for_slope(x))

    def vjp(self, saved: Saved, w: Tensor) -> Tensor:
        return self.core.times_slope(w, saved[2])

    def jvp(self, saved: Saved, v: Tensor) -> Tensor:
        return self.core.times_slope(v, saved[2])

    def vjp_(self, saved: Saved, w: Tensor) -> Tensor:
        return self.core.times_slope_(w, saved[2])

    def dual_vjp(
        self, saved: Saved, v: Tensor, bars: Tensor, needed: Sequence[bool]
    ) -> tuple[Tensor, Gradients]:
        h, value, for_slope = saved
        products = v.mul_(bars[1:])
        products = products[0] if len(v) == 1 else products.sum(0)
        bars = self.core.times_slope_(bars, for_slope)
        self.core.add_curvature_times_(bars[0], products, h, value)
        return bars, ()


class BothSigns(Stage):
    """[x - s, -x - s], side by side along a dimension.

    Args:
        shift: s.
        feature_dim: the dimension, from the right.
    """

    def __init__(self, shift: float, feature_dim: int) -> None:
        self.shift = shift
        self.feature_dim = feature_dim

    def evaluate(self, x: Tensor, *coefficients: Tensor) -> Tensor:
        pair = torch.cat([x, -x], dim=self.feature_dim)
        return pair - self.shift if self.shift else pair

    def linearize(self, x: Tensor, *coefficients: Tensor) -> tuple[Tensor, Saved]:
        return self.evaluate(x), ()

    def vjp(self, saved: Saved, w: Tensor) -> Tensor:
        positive, negative = w.chunk(2, dim=self.feature_dim)
        return positive - negative

    def jvp(self, saved: Saved, v: Tensor) -> Tensor:
        return torch.cat([v, -v], dim=self.feature_dim)

    def dual_vjp(
        self, saved: Saved, v: Tensor, bars: Tensor, needed: Sequence[bool]
    ) -> tuple[Tensor, Gradients]:
        return self.vjp(saved, bars), ()


def product(gains: Iterable[Gain]) -> Tensor | float:
    """The product of gains, 1.0 of none."""
    total: Tensor | float = 1.0
    for gain in gains:
        factor = gain()
        total = factor if isinstance(total, float) and total == 1.0 else total * factor
    return total


def scaled(x: Tensor, gain: Tensor | float) -> Tensor:
    """x times a gain; x itself if that is 1.0."""
    return x if isinstance(gain, float) and gain == 1.0 else x * gain


def folded(stages: Iterable[Stage]) -> list[Stage]:
    """The stages with each scaling multiplied into the affine map before or after it, if any."""
    result: list[Stage] = []
    for stage in stages:
        if isinstance(stage, Scale):
            result = _followed_by_scale(result, stage.gains)
        elif isinstance(stage, Affine) and result and isinstance(result[-1], Scale):
            result[-1] = Affine(stage.layer, (*result[-1].gains, *stage.before), stage.after)
        else:
            result.append(stage)
    return result


def _followed_by_scale(stages: list[Stage], gains: tuple[Gain, ...]) -> list[Stage]:
    if not stages:
        return [Scale(*gains)]
    *before, last = stages
    if isinstance(last, Translate):  # g (x + s) = g x + g s
        shifted = Translate(last.shift, (*last.after, *gains))
        return [*_followed_by_scale(before, gains), shifted]
    if isinstance(last, Affine):
        return [*before, Affine(last.layer, last.before, (*last.after, *gains))]
    if isinstance(last, Scale):
        return [*before, Scale(*last.gains, *gains)]
    return [*stages, Scale(*gains)]
