"""The concatenation of a branch's input and output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .scale import Scale
from .sequence import LinearizedStages, evaluate
from .stage import Gain, Gradients, Stage, inner_product, product


class ConcatenateSaved(NamedTuple):
    """The values that a concatenation saves for products with its Jacobian."""

    a: Tensor
    b: Tensor
    branch: LinearizedStages
    x: Tensor


class Concatenate(Stage[ConcatenateSaved]):
    """[a x, b h(x)], concatenated along a dimension.

    Args:
        weights: returns the pair (a, b).
        branch: the stages of h.
        feature_dim: the dimension, counted from the end.
    """

    def __init__(
        self, weights: Callable[[], Tensor], branch: Sequence[Stage[Any]], feature_dim: int
    ) -> None:
        self.weights = weights
        self.gains: tuple[Gain, ...] = ()
        if isinstance(branch[-1], Scale):
            self.gains, branch = branch[-1].gains, branch[:-1]
        self.branch = branch
        self.feature_dim = feature_dim
        self.size = 2 + sum(stage.size for stage in branch)
        self.layers = tuple(layer for stage in branch for layer in stage.layers)

    def coefficients(self) -> tuple[Tensor, ...]:
        a, b = self.weights().unbind()
        inner = (c for stage in self.branch for c in stage.coefficients())
        return (a, b * product(self.gains), *inner)

    def evaluate(self, x: Tensor, *coefficients: Tensor) -> Tensor:
        a, b, *inner = coefficients
        return self._join(a * x, b * evaluate(self.branch, x, inner))

    def _join(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.cat([x, h.to(x.dtype)], dim=self.feature_dim)

    def linearize(self, x: Tensor, *coefficients: Tensor) -> tuple[Tensor, ConcatenateSaved]:
        a, b, *inner = coefficients
        branch = LinearizedStages(self.branch, x, inner)
        return self._join(a * x, b * branch.value), ConcatenateSaved(a, b, branch, x)

    def vjp(self, saved: ConcatenateSaved, w: Tensor) -> Tensor:
        first, second = self._split(w, saved.x)
        return torch.add(saved.a * first, saved.branch.pulled(saved.b * second))

    def _split(self, joined: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        return joined.tensor_split([x.shape[self.feature_dim]], dim=self.feature_dim)

    def jvp(self, saved: ConcatenateSaved, v: Tensor) -> Tensor:
        return self._join(saved.a * v, saved.b * saved.branch.pushed(v))

    def dual_vjp(
        self, saved: ConcatenateSaved, v: Tensor, cotangents: Tensor, needed: Sequence[bool]
    ) -> tuple[Tensor, Gradients]:
        a, b, branch, x = saved
        first, second = self._split(cotangents, x)
        branch.copy_shared()
        tangents, end = branch.tangents(v)
        by_a = inner_product(first, x, v) if needed[0] else None
        by_b = inner_product(second, branch.value, end) if needed[1] else None
        pulled, inner = branch.pull(tangents, b * second, needed[2:])
        return pulled.add_(a * first), (by_a, by_b, *inner)
