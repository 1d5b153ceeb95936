"""Sequences of stages: their value, and their linearization at a point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .stage import Stage


def evaluate(stages: Sequence[Stage[Any]], x: Tensor, coefficients: Sequence[Tensor]) -> Tensor:
    """Evaluate stages in sequence at x, with the coefficients of all stages in order."""
    start = 0
    for stage in stages:  # no islice: torch 2.7's compiler restarts the iterator each time
        end = start + stage.size
        x = stage.evaluate(x, *coefficients[start:end])
        start = end
    return x


class LinearizedStages:
    """The :class:`pyro_resflow.linearization.Linearization` of a sequence of stages at a point.

    Args:
        stages: at least one.
        x: the point, shape ``(N, *event)``.
        coefficients: of all stages, in order.
    """

    def __init__(
        self, stages: Sequence[Stage[Any]], x: Tensor, coefficients: Sequence[Tensor]
    ) -> None:
        self.stages = stages
        self.saved: list[Any] = []
        start = 0
        for stage in stages:
            end = start + stage.size
            x, saved = stage.linearize(x, *coefficients[start:end])
            self.saved.append(saved)
            start = end
        self.value = x

    def vjp(self, w: Tensor) -> Tensor:
        """J^T w for w of shape ``(S, N, *event)``."""
        return self.pulled(w[0])[None] if len(w) == 1 else self.pulled(w)

    def jvp(self, v: Tensor) -> Tensor:
        """J v for v of shape ``(S, N, *event)``."""
        return self.pushed(v[0])[None] if len(v) == 1 else self.pushed(v)

    def pulled(self, w: Tensor) -> Tensor:
        """J^T w for w of shape ``(S, N, *event)`` or ``(N, *event)``."""
        given = w
        for stage, saved in zip(reversed(self.stages), reversed(self.saved), strict=True):
            in_place = w is not given and not torch.is_grad_enabled()
            w = stage.vjp_(saved, w) if in_place else stage.vjp(saved, w)
        return w

    def pushed(self, v: Tensor) -> Tensor:
        """J v for v of shape ``(S, N, *event)`` or ``(N, *event)``."""
        for stage, saved in zip(self.stages, self.saved, strict=True):
            v = stage.jvp(saved, v)
        return v

    def copy_shared(self) -> None:
        """Copy the first input and the last value, which the caller holds too, before a write."""
        for i in {0, len(self.stages) - 1}:
            self.saved[i] = self.stages[i].unshared(self.saved[i])

    def tangents(self, v: Tensor) -> tuple[list[Tensor], Tensor]:
        """The tangents at the input of each stage, if v enters the first, and at the output."""
        inputs = []
        for stage, saved in zip(self.stages, self.saved, strict=True):
            inputs.append(v)
            v = stage.jvp(saved, v)
        return inputs, v

    def pull(
        self, tangents: Sequence[Tensor], cotangents: Tensor, needed: Sequence[bool]
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Pull cotangents back through all stages, see :meth:`Stage.dual_vjp`."""
        gradients: list[Tensor | None] = []
        end = len(needed)
        for stage, saved, v in zip(
            reversed(self.stages), reversed(self.saved), reversed(tangents), strict=True
        ):
            start = end - stage.size
            cotangents, found = stage.dual_vjp(saved, v, cotangents, needed[start:end])
            gradients[:0] = found
            end = start
        return cotangents, gradients

    def dual_vjp(
        self,
        v: Tensor,
        value_cotangent: Tensor,
        tangent_cotangents: Tensor,
        needed: Sequence[bool],
    ) -> list[Tensor | None]:
        """See :meth:`pyro_resflow.linearization.Linearization.dual_vjp`; can be called once."""
        self.copy_shared()
        v = (v[0] if len(v) == 1 else v).clone()
        inputs = []
        for stage, saved in zip(self.stages, self.saved, strict=True):
            inputs.append(v)
            if stage is not self.stages[-1]:  # the gradient does not depend on J v itself
                v = stage.jvp(saved, v)
        cotangents = torch.cat([value_cotangent[None], tangent_cotangents])
        pulled, gradients = self.pull(inputs, cotangents, needed[1:])
        return [pulled[0] if needed[0] else None, *gradients]
