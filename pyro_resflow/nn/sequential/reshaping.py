"""Stages without arithmetic: reshape, pad, copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..stages import Gradients, Stage


class Copy(Stage[None]):
    """The identity in new memory, because activations overwrite the values that they save."""

    def evaluate(self, x: Tensor, *coefficients: Tensor) -> Tensor:
        return x

    def linearize(self, x: Tensor, *coefficients: Tensor) -> tuple[Tensor, None]:
        return x.clone(), None

    def vjp(self, saved: None, w: Tensor) -> Tensor:
        return w

    def jvp(self, saved: None, v: Tensor) -> Tensor:
        return v

    def dual_vjp(
        self, saved: None, v: Tensor, cotangents: Tensor, needed: Sequence[bool]
    ) -> tuple[Tensor, Gradients]:
        return cotangents, ()


class Shapes(NamedTuple):
    """The shapes of one sample before and after a reshaping."""

    before: torch.Size
    after: torch.Size


class Reshape(Stage[Shapes]):
    """Reshape each sample.

    Args:
        function: reshapes a batch, shape ``(N, *features)``.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def evaluate(self, x: Tensor, *coefficients: Tensor) -> Tensor:
        return self.function(x)

    def linearize(self, x: Tensor, *coefficients: Tensor) -> tuple[Tensor, Shapes]:
        value = self.function(x)
        # a copy, because stages overwrite the values that they save
        return value.clone(), Shapes(x.shape[1:], value.shape[1:])

    def vjp(self, saved: Shapes, w: Tensor) -> Tensor:
        # a copy, because earlier stages may overwrite their cotangents
        return _reshaped(w, saved.after, saved.before).clone()

    def vjp_(self, saved: Shapes, w: Tensor) -> Tensor:
        return _reshaped(w, saved.after, saved.before)

    def jvp(self, saved: Shapes, v: Tensor) -> Tensor:
        return _reshaped(v, saved.before, saved.after)

    def dual_vjp(
        self, saved: Shapes, v: Tensor, cotangents: Tensor, needed: Sequence[bool]
    ) -> tuple[Tensor, Gradients]:
        return _reshaped(cotangents, saved.after, saved.before), ()


def _reshaped(x: Tensor, before: torch.Size, after: torch.Size) -> Tensor:
    """x with another shape of each sample, at any leading dimensions."""
    return x.reshape(*x.shape[: x.dim() - len(before)], *after)


class Pad(Stage[torch.Size]):
    """Pad images in one of the modes of ``nn.Conv2d``.

    Args:
        sides: the padding on the left, on the right, at the top and at the bottom.
        mode: the mode.
    """

    def __init__(self, sides: Sequence[int], mode: str) -> None:
        self.sides = list(sides)
        self.mode = "constant" if mode == "zeros" else mode

    def evaluate(self, x: Tensor, *coefficients: Tensor) -> Tensor:
        images = F.pad(x.reshape(-1, *x.shape[-3:]), self.sides, mode=self.mode)
        return images.reshape(*x.shape[:-3], *images.shape[1:])

    def linearize(self, x: Tensor, *coefficients: Tensor) -> tuple[Tensor, torch.Size]:
        return self.evaluate(x), x.shape[-2:]

    def jvp(self, saved: torch.Size, v: Tensor) -> Tensor:
        return self.evaluate(v)

    def vjp(self, saved: torch.Size, w: Tensor) -> Tensor:
        left, right, top, bottom = self.sides
        if self.mode == "constant":
            return F.pad(w, [-left, -right, -top, -bottom])
        rows = _sources(self.mode, saved[0], top, bottom, w.device)
        columns = _sources(self.mode, saved[1], left, right, w.device)
        summed = w.new_zeros(*w.shape[:-2], saved[0], w.shape[-1]).index_add(-2, rows, w)
        return w.new_zeros(*w.shape[:-2], *saved).index_add(-1, columns, summed)

    def dual_vjp(
        self, saved: torch.Size, v: Tensor, cotangents: Tensor, needed: Sequence[bool]
    ) -> tuple[Tensor, Gradients]:
        return self.vjp(saved, cotangents), ()


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _sources(mode: str, size: int, before: int, after: int, device: torch.device) -> Tensor:
    """For each entry of a padded axis, the index of the entry that it repeats."""
    indices = torch.arange(size, dtype=torch.float64, device="cpu")[None]
    return F.pad(indices, [before, after], mode=mode)[0].long().to(device)
