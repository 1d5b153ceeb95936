r"""A multilayer perceptron linearized at a batch of vectors, and its full Jacobian.

The affine maps are matrices, and the activations between them are elementwise. A shift of each
sample, which a context may give, can follow an affine map. One loop over the layers therefore
needs only about half of the operations of the general :class:`.sequence.LinearizedStages`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .affine import Affine
from .core import Core, ElementwiseCore
from .scale import Translate
from .stage import Stage
from .tangents import JacobianRows, PerceptronTangents, TangentGradients


def is_perceptron(stages: Sequence[Stage[Any]]) -> bool:
    """Whether stages are two or more affine maps of vectors, with activations between them.

    A translation may follow each affine map.
    """
    before: type | None = Core
    number = 0
    for stage in stages:
        kind = type(stage)
        if isinstance(stage, Affine):
            if kind is not Affine or before is not Core or not stage.layer.is_dense:
                return False
            number += 1
        elif kind is Translate:
            if before is not Affine:
                return False
        elif kind is not Core or before is Core:
            return False
        before = kind
    return number > 1 and before is not Core


def evaluate_perceptron(
    stages: Sequence[Stage[Any]], x: Tensor, coefficients: Sequence[Tensor]
) -> Tensor:
    """The value of a perceptron at x, without derivatives.

    The activations write over what the affine maps return: writing to new memory is slow.

    Args:
        stages: see :func:`is_perceptron`.
        x: the batch, shape ``(N, D)``.
        coefficients: of all stages, in order.
    """
    remaining = iter(coefficients)
    for stage in stages:
        if isinstance(stage, Core):
            x = stage.activation.core_(x)
        elif isinstance(stage, Translate):
            x = x + next(remaining)
        else:
            x = F.linear(x, next(remaining), next(remaining) if stage.size > 1 else None)
    return x


def value_and_jacobian_inputs(
    stages: Sequence[Stage[Any]], x: Tensor, coefficients: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """The value of a perceptron at x, its weights and the input of each activation.

    The results are differentiable.

    Args:
        stages: see :func:`is_perceptron`.
        x: the batch, shape ``(N, D)``.
        coefficients: of all stages, in order.
    """
    weights: list[Tensor] = []
    hidden: list[Tensor] = []
    remaining = iter(coefficients)
    for stage in stages:
        if isinstance(stage, Core):
            hidden.append(x)
            x = stage.activation.core(x)
        elif isinstance(stage, Translate):
            x = x + next(remaining)
        else:
            weights.append(next(remaining))
            x = F.linear(x, weights[-1], next(remaining) if stage.size > 1 else None)
    return x, weights + hidden


def activations_of(stages: Sequence[Stage[Any]]) -> list[ElementwiseCore]:
    """The activations of a perceptron."""
    return [stage.activation for stage in stages if isinstance(stage, Core)]


class LinearizedPerceptron:
    """A perceptron's :class:`pyro_resflow.linearization.Linearization` at a batch.

    Args:
        stages: see :func:`is_perceptron`.
        x: the batch, shape ``(N, D)``.
        coefficients: of all stages, in order.

    Attributes:
        value: the perceptron's value, shape ``(N, D)``.
        tangents: the products with the Jacobian.
        sizes: number of coefficients of each affine map and the translation after it.
        shifts: the shape of the translation after each affine map, ``None`` without one.
        points: the input of each affine map.
    """

    def __init__(
        self, stages: Sequence[Stage[Any]], x: Tensor, coefficients: Sequence[Tensor]
    ) -> None:
        weights: list[Tensor] = []
        activations: list[ElementwiseCore] = []
        hidden: list[Tensor] = []
        self.sizes: list[int] = []
        self.shifts: list[torch.Size | None] = []
        self.points = [x]
        remaining = iter(coefficients)
        for stage in stages:
            if isinstance(stage, Core):
                activations.append(stage.activation)
                hidden.append(x)
                x = stage.activation.core(x)
                self.points.append(x)
            elif isinstance(stage, Translate):
                shift = next(remaining)
                self.sizes[-1] += 1
                self.shifts[-1] = shift.shape
                x = x + shift
            else:
                weight = next(remaining)
                weights.append(weight)
                self.sizes.append(stage.size)
                self.shifts.append(None)
                x = F.linear(x, weight, next(remaining) if stage.size > 1 else None)
        self.value = x
        self.tangents = PerceptronTangents(weights, activations, hidden)

    def vjp(self, w: Tensor) -> Tensor:
        """J^T w for w of shape ``(S, N, D)``."""
        return self.tangents.vjp(w)

    def jvp(self, v: Tensor) -> Tensor:
        """J v for v of shape ``(S, N, D)``."""
        return self.tangents.jvp(v)

    def full_jacobian(self) -> PerceptronJacobian:
        """The full Jacobian. Its derivatives overwrite the saved values of this linearization."""
        return PerceptronJacobian(self)

    def transposed_jacobian(self) -> Tensor:
        """The transposed Jacobian, ``(N, D, D)``, without derivatives."""
        return self.tangents.transposed_jacobian()

    def dual_vjp(
        self,
        v: Tensor,
        value_cotangent: Tensor,
        tangent_cotangents: Tensor,
        needed: Sequence[bool],
    ) -> list[Tensor | None]:
        """See :meth:`pyro_resflow.linearization.Linearization.dual_vjp`; can be called once."""
        of_tangents = self.tangents.pulled(v, tangent_cotangents)
        return self.pulled(value_cotangent, of_tangents, needed)

    def pulled(
        self, value: Tensor, of_tangents: TangentGradients, needed: Sequence[bool]
    ) -> list[Tensor | None]:
        """The gradients with respect to x and the coefficients; can be called once.

        Args:
            value: the cotangent of the value, shape ``(N, D)``.
            of_tangents: the gradients of the products with the Jacobian.
            needed: for x and for each coefficient, whether its gradient is wanted.
        """
        tangents = self.tangents
        gradients: list[Tensor | None] = []
        end = len(needed)
        for i in reversed(range(len(tangents.weights))):
            start = end - self.sizes[i]
            by_weight = of_tangents.by_weights[i]
            gradients[:0] = self._of_coefficients(i, value, by_weight, needed[start:end])
            end = start
            if i or needed[0]:
                value = value @ tangents.weights[i]
            if i:
                activation, hidden = tangents.activations[i - 1], tangents.hidden[i - 1]
                value = activation.times_slope_(value, tangents.for_slopes[i - 1])
                by_slopes = of_tangents.by_slopes[i - 1]
                activation.add_curvature_times_(value, by_slopes, hidden, self.points[i])
        return [value if needed[0] else None, *gradients]

    def _of_coefficients(
        self, i: int, value: Tensor, by_weight: Tensor, needed: Sequence[bool]
    ) -> list[Tensor | None]:
        """The gradients with respect to the weight, the bias and the shift of an affine map.

        Args:
            i: the index of the affine map.
            value: the cotangent of its value, shape ``(N, m)``.
            by_weight: the part of the weight's gradient that comes from the tangents.
            needed: for each coefficient, whether its gradient is wanted.
        """
        found: list[Tensor | None] = [None]
        if needed[0]:
            found = [torch.addmm(by_weight, value.t(), self.points[i])]
        shift = self.shifts[i]
        if len(needed) > (1 if shift is None else 2):
            found.append(value.sum(0) if needed[1] else None)
        if shift is not None:
            found.append(value.sum_to_size(shift) if needed[-1] else None)
        return found


class PerceptronJacobian:
    """The transposed Jacobian of a perceptron at a batch.

    Args:
        perceptron: the perceptron at the batch.

    Attributes:
        rows: :math:`J^T`, shape ``(N, D, D)``.
        entries: number of entries kept for :meth:`pulled`.
    """

    def __init__(self, perceptron: LinearizedPerceptron) -> None:
        self.perceptron = perceptron
        self.jacobian = JacobianRows(perceptron.tangents)
        self.rows = self.jacobian.rows
        self.entries = self.jacobian.entries

    def pulled(
        self, value_cotangent: Tensor, rows_cotangent: Tensor, needed: Sequence[bool]
    ) -> list[Tensor | None]:
        """Pull back the cotangents of value and rows; call it once, as it overwrites saved values.

        Args:
            value_cotangent: shape ``(N, D)``.
            rows_cotangent: shape ``(N, D, D)``.
            needed: for x and for each coefficient, whether its gradient is wanted.

        Returns:
            The gradients with respect to x and the coefficients, ``None`` where not wanted.
        """
        of_rows = self.jacobian.pulled(rows_cotangent)
        return self.perceptron.pulled(value_cotangent, of_rows, needed)
