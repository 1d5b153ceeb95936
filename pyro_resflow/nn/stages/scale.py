"""Scalings and translations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .stage import Gain, Gradients, Stage, inner_product, product, scaled


class ScaleSaved(NamedTuple):
    """The values that a scaling saves for products with its Jacobian."""

    x: Tensor
    gain: Tensor


class Scale(Stage[ScaleSaved]):
    """x times a scalar.

    Args:
        gains: return the factors of the scalar.
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

    def linearize(self, x: Tensor, *coefficients: Tensor) -> tuple[Tensor, ScaleSaved]:
        return x * coefficients[0], ScaleSaved(x, coefficients[0])

    def vjp(self, saved: ScaleSaved, w: Tensor) -> Tensor:
        return w * saved.gain

    def jvp(self, saved: ScaleSaved, v: Tensor) -> Tensor:
        return v * saved.gain

    def dual_vjp(
        self, saved: ScaleSaved, v: Tensor, cotangents: Tensor, needed: Sequence[bool]
    ) -> tuple[Tensor, Gradients]:
        by_gain = inner_product(cotangents, saved.x, v) if needed[0] else None
        return cotangents * saved.gain, (by_gain,)


class Translate(Stage[torch.Size]):
    """x plus one constant for each sample, multiplied by the gains of later scalings.

    Args:
        shift: returns the constant, shape ``(N, features)``, or ``(N, channels, 1, 1)`` for
            images.
        after: gains that multiply the constant.
    """

    size = 1

    def __init__(self, shift: Callable[[], Tensor], after: Sequence[Gain] = ()) -> None:
        self.shift = shift
        self.after = tuple(after)

    def coefficients(self) -> tuple[Tensor, ...]:
        return (scaled(self.shift(), product(self.after)),)

    def evaluate(self, x: Tensor, *coefficients: Tensor) -> Tensor:
        return x + coefficients[0]

    def linearize(self, x: Tensor, *coefficients: Tensor) -> tuple[Tensor, torch.Size]:
        return x + coefficients[0], coefficients[0].shape

    def vjp(self, saved: torch.Size, w: Tensor) -> Tensor:
        return w

    def jvp(self, saved: torch.Size, v: Tensor) -> Tensor:
        return v

    def dual_vjp(
        self, saved: torch.Size, v: Tensor, cotangents: Tensor, needed: Sequence[bool]
    ) -> tuple[Tensor, Gradients]:
        of_value = cotangents[0]
        if of_value.shape != saved:
            return cotangents, (of_value.sum_to_size(saved),)
        # a copy, because earlier stages may overwrite the cotangents
        return cotangents, (of_value.clone(),)
