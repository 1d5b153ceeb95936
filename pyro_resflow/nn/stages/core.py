"""Activations, and both signs of their inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .stage import Gradients, Stage


class ElementwiseCore(Protocol):
    """The interface of a stage's activation; :class:`pyro_resflow.nn.Activation` has it."""

    def core(self, h: Tensor) -> Tensor:
        """psi(h)."""

    def core_(self, h: Tensor) -> Tensor:
        """psi(h), without derivatives; it may be written over h."""

    def for_slope(self, h: Tensor) -> Tensor:
        """The tensor that products with psi'(h) use."""

    def times_slope(self, w: Tensor, for_slope: Tensor) -> Tensor:
        """psi'(h) w, differentiable."""

    def times_slope_(self, w: Tensor, for_slope: Tensor) -> Tensor:
        """psi'(h) w, written over w."""

    def add_curvature_times_(self, out: Tensor, w: Tensor, h: Tensor, value: Tensor) -> None:
        """Add psi''(h) w to ``out`` in place; w, h and the value may be overwritten."""


class CoreSaved(NamedTuple):
    """The values that an activation saves for products with its Jacobian."""

    x: Tensor
    value: Tensor
    for_slope: Tensor


@dataclass(frozen=True, eq=False)
class Core(Stage[CoreSaved]):
    """The parameter-free core of an activation.

    Args:
        activation: the :class:`pyro_resflow.nn.Activation`.
    """

    activation: ElementwiseCore

    def evaluate(self, x: Tensor, *coefficients: Tensor) -> Tensor:
        return self.activation.core(x)

    def linearize(self, x: Tensor, *coefficients: Tensor) -> tuple[Tensor, CoreSaved]:
        value = self.activation.core(x)
        return value, CoreSaved(x, value, self.activation.for_slope(x))

    def vjp(self, saved: CoreSaved, w: Tensor) -> Tensor:
        return self.activation.times_slope(w, saved.for_slope)

    def vjp_(self, saved: CoreSaved, w: Tensor) -> Tensor:
        return self.activation.times_slope_(w, saved.for_slope)

    def jvp(self, saved: CoreSaved, v: Tensor) -> Tensor:
        return self.activation.times_slope(v, saved.for_slope)

    def unshared(self, saved: CoreSaved) -> CoreSaved:
        x = saved.x.clone()
        for_slope = x if saved.for_slope is saved.x else saved.for_slope
        return CoreSaved(x, saved.value.clone(), for_slope)

    def dual_vjp(
        self, saved: CoreSaved, v: Tensor, cotangents: Tensor, needed: Sequence[bool]
    ) -> tuple[Tensor, Gradients]:
        is_single = v.dim() == saved.x.dim()
        products = v.mul_(cotangents[1]) if is_single else v.mul_(cotangents[1:]).sum(0)
        cotangents = self.activation.times_slope_(cotangents, saved.for_slope)
        self.activation.add_curvature_times_(cotangents[0], products, saved.x, saved.value)
        return cotangents, ()


@dataclass(frozen=True, eq=False)
class BothSigns(Stage[None]):
    """[x - s, -x - s], concatenated along a dimension.

    Args:
        shift: s.
        feature_dim: the dimension, counted from the end.
    """

    shift: float
    feature_dim: int

    def evaluate(self, x: Tensor, *coefficients: Tensor) -> Tensor:
        pair = torch.cat([x, -x], dim=self.feature_dim)
        return pair - self.shift if self.shift else pair

    def linearize(self, x: Tensor, *coefficients: Tensor) -> tuple[Tensor, None]:
        return self.evaluate(x), None

    def vjp(self, saved: None, w: Tensor) -> Tensor:
        positive, negative = w.chunk(2, dim=self.feature_dim)
        return positive - negative

    def jvp(self, saved: None, v: Tensor) -> Tensor:
        return torch.cat([v, -v], dim=self.feature_dim)

    def dual_vjp(
        self, saved: None, v: Tensor, cotangents: Tensor, needed: Sequence[bool]
    ) -> tuple[Tensor, Gradients]:
        return self.vjp(saved, cotangents), ()
