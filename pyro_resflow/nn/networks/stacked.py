r"""The Jacobians of several networks of one layout, as one batch.

Blocks follow one another, but their Jacobians do not depend on each other once the values are
known. With the tensors c that a Jacobian depends on, such as weights and the inputs of
activations, the linear map :math:`x \mapsto J(c)\,x` is a network with the coefficients c and the
same Jacobian. Stacking the coefficients of several networks gives one such network,
:class:`JacobianStack`, and an estimator of log-determinants takes as many operations for all of
them as for one.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..activations import ELU, LEARNED_BETAS, FixedLipSwish, Softplus, Tanh
from ..lipschitz.infinity_norm import InfinityNormLinear
from ..lipschitz.layer import LipschitzLayer
from ..stages import Affine, Core, StagedNetwork, Tangents, TransposedJacobian

Layout = Hashable

SAME_CORE = frozenset({*LEARNED_BETAS, FixedLipSwish, ELU, Softplus, Tanh})
"""Activations whose core has no settings: that of one network serves for all."""


class Stackable(Protocol):
    """A network whose Jacobian can be stacked with those of others of its layout.

    Shapes: ``networks`` is the number of stacked networks.
    """

    def layout(self) -> Layout | None:
        """Equal for networks that differ in their coefficients alone; ``None`` for no others."""

    def input_features(self) -> int:
        """The number of inputs of a sample."""

    def hidden_features(self) -> int:
        """The number of features of a sample in all hidden layers."""

    def value_and_jacobian_inputs(
        self, x: Tensor, coefficients: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """The value at x, ``(N, D)``, and the tensors from which the Jacobian follows."""

    def jacobian_coefficients(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The tensors that :meth:`tangents` takes, from stacked inputs; differentiable."""

    def tangents(self, coefficients: Sequence[Tensor]) -> Tangents:
        """Products with the Jacobians, each at a batch of its own."""


def perceptron_layout(network: StagedNetwork) -> Layout | None:
    """The layout of a multilayer perceptron; ``None`` if others may compute another function.

    A layer or an activation of another package may have settings of its own.
    """
    if not network.is_perceptron:
        return None
    layout: list[object] = []
    for stage in network.stages:
        if isinstance(stage, Affine):
            if not isinstance(stage.layer, LipschitzLayer | InfinityNormLinear):
                return None
            weight = stage.layer.weight
            layout += [stage.size, weight.shape, weight.dtype, weight.device]
        elif isinstance(stage, Core):
            if type(stage.activation) not in SAME_CORE:
                return None
            layout.append(type(stage.activation))
        else:
            layout.append(type(stage))
    return tuple(layout)


class JacobianStack:
    """The linear maps of the Jacobians of several networks, as one network of the joint batch.

    Args:
        net: one of the networks; all have the same :meth:`Stackable.layout`.
        inputs: for each network, the tensors from which its Jacobian follows.

    Shapes: ``(networks * N, D)`` to the same; the batch of the first network comes first.
    """

    def __init__(self, net: Stackable, inputs: Sequence[Sequence[Tensor]]) -> None:
        self.net = net
        self.inputs = inputs

    def __call__(self, x: Tensor) -> Tensor:
        return self.evaluate(x, self.coefficients())

    def coefficients(self) -> tuple[Tensor, ...]:
        """The stacked coefficients of the Jacobians."""
        stacked = [torch.stack(each) for each in zip(*self.inputs, strict=True)]
        return self.net.jacobian_coefficients(stacked)

    def evaluate(self, x: Tensor, coefficients: Sequence[Tensor]) -> Tensor:
        """The products of the Jacobians with x."""
        return self.linearize(x, coefficients).jvp(x[None])[0]

    def linearize(
        self, x: Tensor, coefficients: Sequence[Tensor] | None = None
    ) -> LinearizedStack:
        """The products with the Jacobian of each sample; they do not depend on x."""
        given = self.coefficients() if coefficients is None else coefficients
        number = len(self.inputs)
        return LinearizedStack(self.net.tangents(given), (number, len(x) // number), x)


class LinearizedStack:
    """The :class:`pyro_resflow.linearization.Linearization` of a :class:`JacobianStack`.

    Args:
        tangents: the products with the Jacobians.
        shape: the number of networks, and N.
        x: the point.
    """

    def __init__(self, tangents: Tangents, shape: tuple[int, int], x: Tensor) -> None:
        self._tangents = tangents
        self.shape = shape
        self.x = x

    @property
    def value(self) -> Tensor:
        """The point in place of the value: the values of the networks are known already."""
        return self.x

    def vjp(self, w: Tensor) -> Tensor:
        """J^T w for w of shape ``(S, networks * N, D)``."""
        return self._tangents.vjp(self._split(w)).flatten(1, 2)

    def jvp(self, v: Tensor) -> Tensor:
        """J v for v of shape ``(S, networks * N, D)``."""
        return self._tangents.jvp(self._split(v)).flatten(1, 2)

    def dual_vjp(
        self,
        v: Tensor,
        value_cotangent: Tensor,
        tangent_cotangents: Tensor,
        needed: Sequence[bool],
    ) -> list[Tensor | None]:
        """See :meth:`pyro_resflow.linearization.Linearization.dual_vjp`; there is no value."""
        found = self._tangents.gradients(self._split(v), self._split(tangent_cotangents))
        return _where_needed(found, needed)

    def full_jacobian(self) -> StackedJacobian:
        """The full Jacobian."""
        return StackedJacobian(self._tangents.jacobian(), self.shape)

    def transposed_jacobian(self) -> Tensor:
        """The transposed Jacobian, ``(networks * N, D, D)``, without derivatives."""
        return self._tangents.transposed_jacobian().flatten(0, 1)

    def _split(self, vectors: Tensor) -> Tensor:
        return vectors.unflatten(1, self.shape)


class StackedJacobian:
    """The transposed Jacobian of a :class:`JacobianStack`.

    Args:
        jacobian: the transposed Jacobians of the networks.
        shape: the number of networks, and N.

    Attributes:
        rows: shape ``(networks * N, D, D)``.
        entries: number of entries kept for :meth:`pulled`.
    """

    def __init__(self, jacobian: TransposedJacobian, shape: tuple[int, int]) -> None:
        self.jacobian = jacobian
        self.shape = shape
        self.rows = jacobian.rows.flatten(0, 1)
        self.entries = jacobian.entries

    def pulled(
        self, value_cotangent: Tensor, rows_cotangent: Tensor, needed: Sequence[bool]
    ) -> list[Tensor | None]:
        """See :meth:`pyro_resflow.logdet.jacobians.FullJacobian.pulled`; there is no value."""
        found = self.jacobian.gradients(rows_cotangent.unflatten(0, self.shape))
        return _where_needed(found, needed)


def _where_needed(
    of_coefficients: Sequence[Tensor], needed: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients with respect to x, on which nothing depends, and to the coefficients."""
    wanted = zip(of_coefficients, needed[1:], strict=True)
    return [None, *(gradient if need else None for gradient, need in wanted)]
