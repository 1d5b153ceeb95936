r"""The whole Jacobian of a multilayer perceptron, and its derivatives.

Of a network :math:`g(x) = W_L \phi(\dots \phi(W_1 x + b_1) \dots) + b_L` the Jacobian is
:math:`J = W_L\,\mathrm{diag}(\phi')\,W_{L-1} \cdots \mathrm{diag}(\phi')\,W_1`. The rows of
:math:`J^T`, one for each input, go through the network together, beginning with :math:`W_1^T`:
a product of matrices for each layer, in place of a product with the Jacobian for each input.

Shapes: rows are ``(N, D, features)``, before the first activation ``(D, features)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..lipschitz.operators import MatrixOperator
from .affine import AffineSaved
from .base import Stage
from .core import Core, CoreSaved


def is_perceptron(saved: Sequence[object]) -> bool:
    """Whether stages are affine maps of vectors with activations between them, at least one.

    Args:
        saved: what their linearization has saved.
    """
    for i, each in enumerate(saved):
        if i % 2:
            if not isinstance(each, CoreSaved):
                return False
        elif (
            not isinstance(each, AffineSaved)
            or each.x.dim() != 2
            or not isinstance(each.operator, MatrixOperator)
        ):
            return False
    return len(saved) > 1 and len(saved) % 2 == 1


class PerceptronJacobian:
    """The transposed Jacobian of a perceptron at a batch.

    Args:
        stages: of the perceptron.
        saved: what their linearization at the batch has saved, see :func:`is_perceptron`.

    Attributes:
        rows: :math:`J^T`, shape ``(N, D, D)``.
        entries: number of entries that it keeps for :meth:`pulled`.
    """

    def __init__(
        self, stages: Sequence[Stage[Any]], saved: Sequence[AffineSaved | CoreSaved]
    ) -> None:
        self.stages = stages
        self.saved = saved
        self.entries = 0
        self.slopes: list[Tensor | None] = []
        self.inputs: list[Tensor | None] = []  # the rows that go into each stage
        rows: Tensor | None = None
        for stage, each in zip(stages, saved, strict=True):
            if isinstance(each, AffineSaved):
                self.inputs.append(rows)
                self.slopes.append(None)
                operator = each.operator
                rows = operator.weight.t() if rows is None else operator.apply(rows)
                continue
            assert isinstance(stage, Core)
            assert rows is not None  # for the type checker
            rows = rows.to(each.x.dtype)  # autocast has lowered the features, not the weight
            self.inputs.append(rows)
            self.entries += 2 * each.x.numel() * rows.shape[-2]  # before and after
            slope = stage.activation.times_slope(torch.ones_like(each.x), each.for_slope)[:, None]
            self.slopes.append(slope)
            rows = rows * slope
        assert rows is not None  # for the type checker
        self.rows = rows

    def pulled(
        self, value_cotangent: Tensor, rows_cotangent: Tensor, needed: Sequence[bool]
    ) -> list[Tensor | None]:
        """Pull cotangents of value and rows back; writes over the saved values, so call it once.

        Args:
            value_cotangent: shape ``(N, D)``.
            rows_cotangent: shape ``(N, D, D)``.
            needed: for x and for each coefficient, whether its gradient is wanted.

        Returns:
            The gradients by x and the coefficients, ``None`` where not wanted.
        """
        value, rows = value_cotangent, rows_cotangent
        gradients: list[Tensor | None] = []
        end = len(needed)
        for i in reversed(range(len(self.stages))):
            stage, saved = self.stages[i], self.saved[i]
            if isinstance(saved, CoreSaved):
                value, rows = self._through_core(i, value, rows)
                continue
            start = end - stage.size
            gradients[:0] = self._of_coefficients(i, value, rows, needed[start:end])
            end = start
            if i or needed[0]:
                value = saved.operator.adjoint(value)
            if i:
                rows = saved.operator.adjoint(rows)
        return [value if needed[0] else None, *gradients]

    def _of_coefficients(
        self, i: int, value: Tensor, rows: Tensor, needed: Sequence[bool]
    ) -> list[Tensor | None]:
        """The gradients by weight and bias of an affine map."""
        saved, inputs = self.saved[i], self.inputs[i]
        assert isinstance(saved, AffineSaved)  # for the type checker
        x, operator = saved
        weight = None
        if needed[0] and inputs is not None:
            weight = operator.outer((value, x), (rows, inputs))
        elif needed[0]:  # the rows that go into the first map are those of the identity
            weight = torch.addmm(rows.sum(0).t(), value.t(), x)
        if len(needed) == 1:
            return [weight]
        return [weight, value.sum(0) if needed[1] else None]

    def _through_core(self, i: int, value: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The cotangents before an activation."""
        stage, saved, slope, inputs = self.stages[i], self.saved[i], self.slopes[i], self.inputs[i]
        assert isinstance(stage, Core)
        assert isinstance(saved, CoreSaved)
        assert slope is not None
        assert inputs is not None  # for the type checker
        products = (rows * inputs).sum(1)
        value = stage.activation.times_slope_(value, saved.for_slope)
        stage.activation.add_curvature_times_(value, products, saved.x, saved.value)
        return value, rows.mul_(slope)
