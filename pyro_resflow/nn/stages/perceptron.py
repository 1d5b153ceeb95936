r"""A multilayer perceptron linearized at a batch of vectors, and its full Jacobian.

The affine maps are matrices, and the activations between them are elementwise. A shift of each
sample, which a context may give, can follow an affine map. One loop over the layers therefore
needs only about half of the operations of the general :class:`.sequence.LinearizedStages`.

:math:`g(x) = W_L \phi(\dots \phi(W_1 x + b_1) \dots) + b_L` has the Jacobian
:math:`J = W_L\,\mathrm{diag}(\phi')\,W_{L-1} \cdots \mathrm{diag}(\phi')\,W_1`. The rows of
:math:`J^T`, one for each input, go through the network together, beginning with :math:`W_1^T`.
This takes one matrix product per layer, in place of one product with the Jacobian per input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .affine import Affine
from .core import Core
from .scale import Translate
from .stage import Stage

CHUNK_ENTRIES = 2**16
"""Entries of a Jacobian's rows that go through a perceptron at a time, where they are not kept:
256 KiB in float32. The C library returns larger arrays to the system more often, and new pages
take longer than the arithmetic."""


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


class LinearizedPerceptron:
    """A perceptron's :class:`pyro_resflow.linearization.Linearization` at a batch.

    Args:
        stages: see :func:`is_perceptron`.
        x: the batch, shape ``(N, D)``.
        coefficients: of all stages, in order.

    Attributes:
        value: the perceptron's value, shape ``(N, D)``.
        weights: the weights of the affine maps.
        sizes: number of coefficients of each affine map and the translation after it.
        shifts: the shape of the translation after each affine map, ``None`` without one.
        activations: the activations between the affine maps.
        points: the input of each affine map.
        hidden: the input of each activation.
        for_slopes: the tensors that products with the activations' slopes use.
    """

    def __init__(
        self, stages: Sequence[Stage[Any]], x: Tensor, coefficients: Sequence[Tensor]
    ) -> None:
        self.weights: list[Tensor] = []
        self.sizes: list[int] = []
        self.shifts: list[torch.Size | None] = []
        self.activations: list[Any] = []
        self.points = [x]
        self.hidden: list[Tensor] = []
        self.for_slopes: list[Tensor] = []
        remaining = iter(coefficients)
        for stage in stages:
            if isinstance(stage, Core):
                activation = stage.activation
                self.activations.append(activation)
                self.hidden.append(x)
                self.for_slopes.append(activation.for_slope(x))
                x = activation.core(x)
                self.points.append(x)
            elif isinstance(stage, Translate):
                shift = next(remaining)
                self.sizes[-1] += 1
                self.shifts[-1] = shift.shape
                x = x + shift
            else:
                weight = next(remaining)
                self.weights.append(weight)
                self.sizes.append(stage.size)
                self.shifts.append(None)
                x = F.linear(x, weight, next(remaining) if stage.size > 1 else None)
        self.value = x

    def vjp(self, w: Tensor) -> Tensor:
        """J^T w for w of shape ``(S, N, D)``."""
        is_single, in_place = len(w) == 1, not torch.is_grad_enabled()
        w = w[0] if is_single else w
        for i in reversed(range(len(self.weights))):
            w = w @ self.weights[i]
            if i:
                activation, for_slope = self.activations[i - 1], self.for_slopes[i - 1]
                times_slope = activation.times_slope_ if in_place else activation.times_slope
                w = times_slope(w, for_slope)
        return w[None] if is_single else w

    def jvp(self, v: Tensor) -> Tensor:
        """J v for v of shape ``(S, N, D)``."""
        is_single = len(v) == 1
        v = v[0] if is_single else v
        for i, weight in enumerate(self.weights):
            if i:
                v = self.activations[i - 1].times_slope(v, self.for_slopes[i - 1])
            v = v @ weight.t()
        return v[None] if is_single else v

    def full_jacobian(self) -> PerceptronJacobian:
        """The full Jacobian. Its derivatives overwrite the saved values of this linearization."""
        return PerceptronJacobian(self)

    def transposed_jacobian(self) -> Tensor:
        """The transposed Jacobian, ``(N, D, D)``, without derivatives; it uses up this object."""
        slopes: list[Tensor] = []
        for i, activation in enumerate(self.activations):
            ones = self.points[i + 1].fill_(1)  # no new memory: allocating takes longer
            slopes.append(activation.times_slope_(ones, self.for_slopes[i])[:, None])
        # contiguous, see PerceptronJacobian; autocast has lowered the features, not the weight
        first = self.weights[0].t().contiguous().to(slopes[0].dtype)
        widest = max(slope.shape[-1] for slope in slopes)
        chunk = max(1, CHUNK_ENTRIES // max(1, len(first) * widest))
        parts: list[Tensor] = []
        for chunks in zip(*(slope.split(chunk) for slope in slopes), strict=True):
            rows = first
            for i, slope in enumerate(chunks):
                rows = (rows.mul_(slope) if i else rows * slope) @ self.weights[i + 1].t()
            parts.append(rows)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def dual_vjp(
        self,
        v: Tensor,
        value_cotangent: Tensor,
        tangent_cotangents: Tensor,
        needed: Sequence[bool],
    ) -> list[Tensor | None]:
        """See :meth:`pyro_resflow.linearization.Linearization.dual_vjp`; can be called once."""
        # 1. the tangents at the input of each affine map and of each activation
        is_single = len(v) == 1
        inputs = [v[0] if is_single else v]
        before: list[Tensor] = []
        for i, activation in enumerate(self.activations):
            before.append(inputs[-1] @ self.weights[i].t())
            inputs.append(activation.times_slope(before[-1], self.for_slopes[i]))
        # 2. pull the cotangents of the value and of the tangents back through each of them
        cotangents = torch.cat([value_cotangent[None], tangent_cotangents])
        gradients: list[Tensor | None] = []
        end = len(needed)
        for i in reversed(range(len(self.weights))):
            start = end - self.sizes[i]
            gradients[:0] = self.of_coefficients(
                i, cotangents[0], cotangents[1:], inputs[i], needed[start:end]
            )
            end = start
            if i or needed[0]:
                cotangents = cotangents @ self.weights[i]
            if i:
                of_tangents = cotangents[1] if is_single else cotangents[1:]
                products = before[i - 1].mul_(of_tangents)
                products = products if is_single else products.sum(0)
                self.through_activation(i - 1, cotangents, cotangents[0], products)
        return [cotangents[0] if needed[0] else None, *gradients]

    def of_coefficients(
        self,
        i: int,
        value: Tensor,
        tangents: Tensor,
        inputs: Tensor | None,
        needed: Sequence[bool],
    ) -> list[Tensor | None]:
        """The gradients with respect to the weight, the bias and the shift of an affine map.

        Args:
            i: the index of the affine map.
            value: the cotangent of its value, shape ``(N, m)``.
            tangents: the cotangents of its output tangents, shape ``(*, m)``.
            inputs: its input tangents, shape ``(*, n)``; ``None`` for the n unit vectors of every
                sample, with tangents of shape ``(N, n, m)``.
            needed: for each coefficient, whether its gradient is wanted.
        """
        weight = None
        if needed[0]:
            by_tangents = (
                tangents.sum(0).t() if inputs is None else _rows(tangents).t() @ _rows(inputs)
            )
            weight = torch.addmm(by_tangents, value.t(), self.points[i])
        found = [weight]
        shift = self.shifts[i]
        if len(needed) > (1 if shift is None else 2):
            found.append(value.sum(0) if needed[1] else None)
        if shift is not None:
            found.append(value.sum_to_size(shift) if needed[-1] else None)
        return found

    def through_activation(
        self, i: int, cotangents: Tensor, of_value: Tensor, products: Tensor
    ) -> None:
        """Pull cotangents back through an activation, in place.

        Args:
            i: the index of the activation.
            cotangents: shape ``(*, N, n)``.
            of_value: the cotangent of the value, shape ``(N, n)``: ``cotangents`` or a part of it.
            products: the tangents times their cotangents, summed over tangents, shape ``(N, n)``.
        """
        activation = self.activations[i]
        activation.times_slope_(cotangents, self.for_slopes[i])
        activation.add_curvature_times_(of_value, products, self.hidden[i], self.points[i + 1])


class PerceptronJacobian:
    """The transposed Jacobian of a perceptron at a batch.

    Shapes: rows are ``(N, D, features)``, before the first activation ``(D, features)``.

    Args:
        perceptron: the perceptron at the batch.

    Attributes:
        rows: :math:`J^T`, shape ``(N, D, D)``.
        entries: number of entries kept for :meth:`pulled`.
    """

    def __init__(self, perceptron: LinearizedPerceptron) -> None:
        self.perceptron = perceptron
        self.entries = 0
        self.slopes: list[Tensor] = []
        self.before: list[Tensor] = []  # the rows at the input of each activation
        self.after: list[Tensor] = []  # and at its output
        # contiguous, because a product takes on the layout, and the next one would then be slow
        rows = perceptron.weights[0].t().contiguous()
        for i, activation in enumerate(perceptron.activations):
            hidden = perceptron.hidden[i]
            ones = torch.ones_like(hidden)
            slope = activation.times_slope(ones, perceptron.for_slopes[i])[:, None]
            rows = rows.to(hidden.dtype)  # autocast has lowered the features, not the weight
            self.slopes.append(slope)
            self.before.append(rows)
            self.after.append(rows * slope)
            self.entries += 2 * self.after[-1].numel()
            rows = self.after[-1] @ perceptron.weights[i + 1].t()
        self.rows = rows

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
        perceptron, value, rows = self.perceptron, value_cotangent, rows_cotangent
        gradients: list[Tensor | None] = []
        end = len(needed)
        for i in reversed(range(len(perceptron.weights))):
            start = end - perceptron.sizes[i]
            inputs = self.after[i - 1] if i else None
            gradients[:0] = perceptron.of_coefficients(i, value, rows, inputs, needed[start:end])
            end = start
            if i or needed[0]:
                value = value @ perceptron.weights[i]
            if i:
                rows = rows @ perceptron.weights[i]
                products = (rows * self.before[i - 1]).sum(1)
                perceptron.through_activation(i - 1, value, value, products)
                rows.mul_(self.slopes[i - 1])
        return [value if needed[0] else None, *gradients]


def _rows(x: Tensor) -> Tensor:
    """Vectors, ``(*, n)``, as the rows of a matrix."""
    return x if x.dim() == 2 else x.flatten(0, -2)
