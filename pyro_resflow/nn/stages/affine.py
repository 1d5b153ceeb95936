"""Affine maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from .stage import Gain, Gradients, Stage, product


class Products(Protocol):
    """The linear map A of an affine map, on any number of vectors at once."""

    def apply(self, v: Tensor) -> Tensor:
        """A v; differentiable."""

    def adjoint(self, u: Tensor) -> Tensor:
        """A^T u; differentiable."""

    def outer(self, *pairs: tuple[Tensor, Tensor]) -> Tensor:
        """The gradient of the sum of u^T A v over pairs (u, v) with respect to the weight."""


class AffineLayer(Protocol):
    """The interface of an affine stage's layer; :class:`pyro_resflow.nn.LipschitzLayer` has it."""

    @property
    def is_dense(self) -> bool:
        """Whether the map is the product with the weight matrix plus the bias."""

    @property
    def bias(self) -> Tensor | None:
        """The constant that is added, if there is one."""

    def effective_weight(self, gain: Tensor | float = 1.0) -> Tensor:
        """The weight that is applied, times a gain."""

    def operator(self, weight: Tensor) -> Products:
        """The linear map of a weight."""

    def affine(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The affine map of a weight and a bias at x."""


class AffineSaved(NamedTuple):
    """The values that an affine map saves for products with its Jacobian."""

    x: Tensor
    operator: Products


class Affine(Stage[AffineSaved]):
    """A linear operator and a bias, with the gains of the scalings before and after it.

    Args:
        layer: the layer that holds the weight.
        before: gains that multiply the input.
        after: gains that multiply the output.
    """

    def __init__(
        self, layer: AffineLayer, before: Sequence[Gain] = (), after: Sequence[Gain] = ()
    ) -> None:
        self.layer = layer
        self.layers = (layer,)
        self.before = tuple(before)
        self.after = tuple(after)
        self.size = 1 if layer.bias is None else 2

    def coefficients(self) -> tuple[Tensor, ...]:
        after = product(self.after) if self.after else 1.0
        gain = product(self.before) * after if self.before else after
        weight, bias = self.layer.effective_weight(gain), self.layer.bias
        if bias is None:
            return (weight,)
        return weight, bias * after if self.after else bias

    def evaluate(self, x: Tensor, *coefficients: Tensor) -> Tensor:
        return self.layer.affine(x, *coefficients)

    def linearize(self, x: Tensor, *coefficients: Tensor) -> tuple[Tensor, AffineSaved]:
        operator = self.layer.operator(coefficients[0])
        return self.layer.affine(x, *coefficients), AffineSaved(x, operator)

    def vjp(self, saved: AffineSaved, w: Tensor) -> Tensor:
        return saved.operator.adjoint(w)

    vjp_ = vjp

    def jvp(self, saved: AffineSaved, v: Tensor) -> Tensor:
        return saved.operator.apply(v)

    def dual_vjp(
        self, saved: AffineSaved, v: Tensor, cotangents: Tensor, needed: Sequence[bool]
    ) -> tuple[Tensor, Gradients]:
        x, operator = saved
        of_value, weight = cotangents[0], None
        if needed[0]:
            weight = operator.outer((of_value, x), (cotangents[1:], v))
        pulled = operator.adjoint(cotangents)
        if len(needed) == 1:
            return pulled, (weight,)
        return pulled, (weight, self._of_bias(of_value) if needed[1] else None)

    def _of_bias(self, of_value: Tensor) -> Tensor:
        """The gradient of the bias; features are dimension 1, of a matrix product the last."""
        last = of_value.dim() - 1
        return of_value.sum([*range(last)] if self.layer.is_dense else [0, *range(2, last + 1)])
