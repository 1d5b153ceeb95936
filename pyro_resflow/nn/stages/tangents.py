r"""Products with the Jacobians of multilayer perceptrons, of one or of several at once.

The Jacobian :math:`J = W_L\,\mathrm{diag}(\phi'(h_{L-1}))\,W_{L-1} \cdots
\mathrm{diag}(\phi'(h_1))\,W_1` depends on the input through the inputs h of the activations alone.
Given these, the Jacobians of several perceptrons of the same layers can be multiplied together,
although the input of one perceptron is the output of another.

Shapes: ``networks`` is empty for one perceptron, else their number. Weights are
``(*networks, m, n)`` and features ``(*networks, N, n)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .core import ElementwiseCore

CHUNK_ENTRIES = 2**16
"""Entries of a Jacobian's rows that go through a perceptron at a time, where they are not kept:
256 KiB in float32. The C library returns larger arrays to the system more often, and new pages
take longer than the arithmetic."""


class Tangents(Protocol):
    """Products with the Jacobians of one network or of several."""

    def vjp(self, w: Tensor) -> Tensor:
        """J^T w for w of shape ``(S, *networks, N, D)``."""

    def jvp(self, v: Tensor) -> Tensor:
        """J v for v of shape ``(S, *networks, N, D)``."""

    def gradients(self, v: Tensor, w: Tensor) -> list[Tensor]:
        """The gradients of :math:`w^T J v` with respect to all tensors that J depends on.

        They are summed over samples and tangents.

        Args:
            v: shape ``(S, *networks, N, D)``.
            w: the same shape.
        """

    def jacobian(self) -> TransposedJacobian:
        """The full Jacobian."""

    def transposed_jacobian(self) -> Tensor:
        """The transposed Jacobian, ``(*networks, N, D, D)``, without derivatives."""


class TransposedJacobian(Protocol):
    """The full Jacobian, and its derivatives."""

    rows: Tensor
    """J^T, shape ``(*networks, N, D, D)``."""

    entries: int
    """The number of entries kept for :meth:`gradients`."""

    def gradients(self, rows: Tensor) -> list[Tensor]:
        """Pull cotangents of the rows back to all tensors that J depends on; call it once."""


class TangentGradients(NamedTuple):
    """The gradients of a product with a Jacobian.

    Attributes:
        by_weights: the gradient with respect to each weight.
        by_slopes: the gradient with respect to the slopes of each activation,
            ``(*networks, N, n)``.
    """

    by_weights: list[Tensor]
    by_slopes: list[Tensor]


class PerceptronTangents:
    """Products with the Jacobian of a perceptron.

    Args:
        weights: the weights of the affine maps.
        activations: the activations between the affine maps.
        hidden: the input of each activation.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        activations: Sequence[ElementwiseCore],
        hidden: Sequence[Tensor],
    ) -> None:
        self.weights = weights
        self.activations = activations
        self.hidden = hidden
        self.for_slopes = [a.for_slope(h) for a, h in zip(activations, hidden, strict=True)]

    def vjp(self, w: Tensor) -> Tensor:
        """J^T w for w of shape ``(S, *networks, N, D)``."""
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
        """J v for v of shape ``(S, *networks, N, D)``."""
        is_single = len(v) == 1
        v = v[0] if is_single else v
        for i, weight in enumerate(self.weights):
            if i:
                v = self.activations[i - 1].times_slope(v, self.for_slopes[i - 1])
            v = v @ weight.mT
        return v[None] if is_single else v

    def gradients(self, v: Tensor, w: Tensor) -> list[Tensor]:
        """See :meth:`Tangents.gradients`: those of the weights, then those of ``hidden``."""
        return self.of_tensors(self.pulled(v, w))

    def of_tensors(self, found: TangentGradients) -> list[Tensor]:
        """The gradients with respect to weights and hidden features."""
        by_hidden: list[Tensor] = []
        for activation, hidden, by_slopes in zip(
            self.activations, self.hidden, found.by_slopes, strict=True
        ):
            by_hidden.append(torch.zeros_like(hidden))
            # copies, because the method may overwrite its arguments
            value = activation.core(hidden)
            activation.add_curvature_times_(by_hidden[-1], by_slopes, hidden.clone(), value)
        return [*found.by_weights, *by_hidden]

    def jacobian(self) -> JacobianRows:
        """The full Jacobian."""
        return JacobianRows(self)

    def pulled(self, v: Tensor, w: Tensor) -> TangentGradients:
        """The gradients of :math:`w^T J v`, see :meth:`gradients`."""
        is_single = len(v) == 1
        v, w = (v[0], w[0]) if is_single else (v, w)
        # 1. the tangents at the input of each affine map and of each activation
        inputs, before = [v], list[Tensor]()
        for i, activation in enumerate(self.activations):
            before.append(inputs[-1] @ self.weights[i].mT)
            inputs.append(activation.times_slope(before[-1], self.for_slopes[i]))
        # 2. pull w back through each of them
        by_weights, by_slopes = list[Tensor](), list[Tensor]()
        for i in reversed(range(len(self.weights))):
            products = w.mT @ inputs[i]
            by_weights.append(products if is_single else products.sum(0))
            if i:
                w = w @ self.weights[i]
                products = before[i - 1].mul_(w)
                by_slopes.append(products if is_single else products.sum(0))
                w = self.activations[i - 1].times_slope_(w, self.for_slopes[i - 1])
        return TangentGradients(by_weights[::-1], by_slopes[::-1])

    def transposed_jacobian(self) -> Tensor:
        """The transposed Jacobian, ``(*networks, N, D, D)``, without derivatives."""
        slopes: list[Tensor] = []
        for i, activation in enumerate(self.activations):
            ones = torch.ones_like(self.hidden[i])
            slopes.append(activation.times_slope_(ones, self.for_slopes[i]).unsqueeze(-2))
        first = _first_rows(self.weights[0]).to(slopes[0].dtype)  # see JacobianRows
        widest = max(slope.shape[-1] for slope in slopes)
        chunk = max(1, CHUNK_ENTRIES // max(1, first.numel() // first.shape[-1] * widest))
        parts: list[Tensor] = []
        for chunks in zip(*(slope.split(chunk, dim=-3) for slope in slopes), strict=True):
            rows = first
            for i, slope in enumerate(chunks):
                rows = times(rows.mul_(slope) if i else rows * slope, self.weights[i + 1].mT)
            parts.append(rows)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-3)


class JacobianRows:
    """The transposed Jacobian of a perceptron.

    The rows of :math:`J^T`, one for each input, go through the network together, beginning with
    :math:`W_1^T`. This takes one matrix product per layer, in place of one product with the
    Jacobian per input.

    Shapes: rows are ``(*networks, N, D, features)``, before the first activation
    ``(*networks, 1, D, features)``.

    Args:
        tangents: the products with the Jacobian.

    Attributes:
        rows: :math:`J^T`, shape ``(*networks, N, D, D)``.
        entries: number of entries kept for :meth:`pulled`.
    """

    def __init__(self, tangents: PerceptronTangents) -> None:
        self.tangents = tangents
        self.entries = 0
        self.slopes: list[Tensor] = []
        self.before: list[Tensor] = []  # the rows at the input of each activation
        self.after: list[Tensor] = []  # and at its output
        rows = _first_rows(tangents.weights[0])
        for i, activation in enumerate(tangents.activations):
            hidden = tangents.hidden[i]
            ones = torch.ones_like(hidden)
            slope = activation.times_slope(ones, tangents.for_slopes[i]).unsqueeze(-2)
            rows = rows.to(hidden.dtype)  # autocast has lowered the features, not the weight
            self.slopes.append(slope)
            self.before.append(rows)
            self.after.append(rows * slope)
            self.entries += 2 * self.after[-1].numel()
            rows = times(self.after[-1], tangents.weights[i + 1].mT)
        self.rows = rows

    def gradients(self, rows: Tensor) -> list[Tensor]:
        """See :meth:`TransposedJacobian.gradients`: of the weights, then of ``hidden``."""
        return self.tangents.of_tensors(self.pulled(rows))

    def pulled(self, rows: Tensor) -> TangentGradients:
        """Pull back the cotangents of the rows, ``(*networks, N, D, D)``."""
        by_weights, by_slopes = list[Tensor](), list[Tensor]()
        for i in reversed(range(len(self.tangents.weights))):
            if not i:
                by_weights.append(rows.sum(-3).mT)
                break
            flat, inputs = rows.flatten(-3, -2), self.after[i - 1].flatten(-3, -2)
            by_weights.append(flat.mT @ inputs)
            rows = times(rows, self.tangents.weights[i])
            by_slopes.append((rows * self.before[i - 1]).sum(-2))
            rows.mul_(self.slopes[i - 1])
        return TangentGradients(by_weights[::-1], by_slopes[::-1])


def times(rows: Tensor, weight: Tensor) -> Tensor:
    """The products of the rows of each sample, ``(*networks, N, D, m)``, with a matrix."""
    if weight.dim() == 2:
        return rows @ weight
    # torch would otherwise copy the matrix for each sample
    return torch.bmm(rows.flatten(-3, -2), weight).unflatten(-2, rows.shape[-3:-1])


def _first_rows(weight: Tensor) -> Tensor:
    """The transposed weight, shape ``(*networks, 1, D, n)``.

    It is contiguous, because a product takes on the layout, and the next one would then be slow.
    """
    return weight.mT.contiguous().unsqueeze(-3)
