"""Stages one after the other: their value, and their linearization at a point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

import torch
from torch import Tensor

from .base import Core, Gain, Gradients, Saved, Scale, Stage, inner_product, product


def evaluate(stages: Sequence[Stage], x: Tensor, coefficients: Sequence[Tensor]) -> Tensor:
    """The stages one after the other at x, with the coefficients of all, in order."""
    remaining = iter(coefficients)
    for stage in stages:
        x = stage.evaluate(x, *islice(remaining, stage.size))
    return x


class LinearizedStages:
    """Stages one after the other, at a point: a :class:`pyro_resflow.linearization.Linearization`.

    Args:
        stages: at least one.
        x: the point, shape ``(N, *event)``.
        coefficients: of all stages, in order.
    """

    def __init__(self, stages: Sequence[Stage], x: Tensor, coefficients: Sequence[Tensor]) -> None:
        self.stages = stages
        self.saved: list[Saved] = []
        remaining = iter(coefficients)
        for stage in stages:
            x, saved = stage.linearize(x, *islice(remaining, stage.size))
            self.saved.append(saved)
        self.value = x

    def vjp(self, w: Tensor) -> Tensor:
        """J^T w for w of shape ``(S, N, *event)``."""
        given = w
        for stage, saved in zip(reversed(self.stages), reversed(self.saved), strict=True):
            in_place = w is not given and not torch.is_grad_enabled()
            w = stage.vjp_(saved, w) if in_place else stage.vjp(saved, w)
        return w

    def jvp(self, v: Tensor) -> Tensor:
        """J v for v of shape ``(S, N, *event)``."""
        for stage, saved in zip(self.stages, self.saved, strict=True):
            v = stage.jvp(saved, v)
        return v

    def give_up_shared(self) -> None:
        """Copy the first input and the last value, which others hold, if they get overwritten."""
        for i in {0, len(self.stages) - 1}:
            if isinstance(self.stages[i], Core):
                h, value, for_slope = self.saved[i]
                copied = h.clone()
                self.saved[i] = (copied, value.clone(), copied if for_slope is h else for_slope)

    def tangents(self, v: Tensor) -> tuple[list[Tensor], Tensor]:
        """What goes into each stage when v goes into the first, and what comes out at the end."""
        inputs = []
        for stage, saved in zip(self.stages, self.saved, strict=True):
            inputs.append(v)
            v = stage.jvp(saved, v)
        return inputs, v

    def pull(
        self, tangents: Sequence[Tensor], bars: Tensor, needed: Sequence[bool]
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Pull bars back through all stages, see :meth:`Stage.dual_vjp`."""
        gradients: list[Tensor | None] = []
        end = len(needed)
        for stage, saved, v in zip(
            reversed(self.stages), reversed(self.saved), reversed(tangents), strict=True
        ):
            start = end - stage.size
            bars, found = stage.dual_vjp(saved, v, bars, needed[start:end])
            gradients[:0] = found
            end = start
        return bars, gradients

    def dual_vjp(
        self,
        v: Tensor,
        value_cotangent: Tensor,
        tangent_cotangents: Tensor,
        needed: Sequence[bool],
    ) -> list[Tensor | None]:
        """See :meth:`pyro_resflow.linearization.Linearization.dual_vjp`; to be called once."""
        self.give_up_shared()
        v = v.clone()
        inputs = []
        for stage, saved in zip(self.stages, self.saved, strict=True):
            inputs.append(v)
            if stage is not self.stages[-1]:  # J v itself has no part in the gradient
                v = stage.jvp(saved, v)
        bars = torch.cat([value_cotangent[None], tangent_cotangents])
        pulled, gradients = self.pull(inputs, bars, needed[1:])
        return [pulled[0] if needed[0] else None, *gradients]


class Beside(Stage):
    """[a x, b h(x)], side by side along a dimension.

    Args:
        weights: gives the pair (a, b).
        branch: the stages of h.
        feature_dim: the dimension, from the right.
    """

    def __init__(
        self, weights: Callable[[], Tensor], branch: Sequence[Stage], feature_dim: int
    ) -> None:
        self.weights = weights
        self.gains: tuple[Gain, ...] = ()
        if isinstance(branch[-1], Scale):
            self.gains, branch = branch[-1].gains, branch[:-1]
        self.branch = branch
        self.feature_dim = feature_dim
        self.size = 2 + sum(stage.size for stage in branch)

    def coefficients(self) -> tuple[Tensor, ...]:
        a, b = self.weights().unbind()
        inner = (c for stage in self.branch for c in stage.coefficients())
        return (a, b * product(self.gains), *inner)

    def evaluate(self, x: Tensor, *coefficients: Tensor) -> Tensor:
        a, b, *inner = coefficients
        return self._join(a * x, b * evaluate(self.branch, x, inner))

    def _join(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.cat([x, h.to(x.dtype)], dim=self.feature_dim)

    def linearize(self, x: Tensor, *coefficients: Tensor) -> tuple[Tensor, Saved]:
        a, b, *inner = coefficients
        branch = LinearizedStages(self.branch, x, inner)
        return self._join(a * x, b * branch.value), (a, b, branch, x)

    def vjp(self, saved: Saved, w: Tensor) -> Tensor:
        a, b, branch, x = saved
        first, second = w.tensor_split([x.shape[self.feature_dim]], dim=self.feature_dim)
        return torch.add(a * first, branch.vjp(b * second))

    def jvp(self, saved: Saved, v: Tensor) -> Tensor:
        a, b, branch, _ = saved
        return self._join(a * v, b * branch.jvp(v))

    def dual_vjp(
        self, saved: Saved, v: Tensor, bars: Tensor, needed: Sequence[bool]
    ) -> tuple[Tensor, Gradients]:
        a, b, branch, x = saved
        first, second = bars.tensor_split([x.shape[self.feature_dim]], dim=self.feature_dim)
        branch.give_up_shared()
        tangents, end = branch.tangents(v)
        d_a = inner_product(first, x, v) if needed[0] else None
        d_b = inner_product(second, branch.value, end) if needed[1] else None
        pulled, inner = branch.pull(tangents, b * second, needed[2:])
        return pulled.add_(a * first), (d_a, d_b, *inner)
