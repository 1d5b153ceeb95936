r"""A product of two bounded functions, and a network that ends in it, linearized at a batch.

The product is :math:`p(x, n) = a\,r \tanh(x/r) \tanh(n/r)`, entry by entry. With
:math:`u = \tanh(x/r)` and :math:`t = \tanh(n/r)` its derivatives are

.. math:: p_x = a\,t\,(1 - u^2), \qquad p_n = a\,u\,(1 - t^2),

and :math:`|p_x| + |p_n| \le a`, because :math:`(1 - u^2) t + u (1 - t^2) = (u + t)(1 - u t) \le 1`
for u and t in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ...linearization import Linearization
from .perceptron import LinearizedPerceptron, PerceptronJacobian
from .tangents import JacobianRows, PerceptronTangents


class Gate:
    """The product p at a batch, of one network or of several.

    Args:
        x: first factor's argument, shape ``(*networks, N, D)``.
        n: second factor's argument, of the same shape.
        amplitude: a, positive, shape ``(*networks, D)``.
        reach: r, a positive number.

    Attributes:
        value: the product, shape ``(*networks, N, D)``.
    """

    def __init__(self, x: Tensor, n: Tensor, amplitude: Tensor, reach: float) -> None:
        self.amplitude, self.reach = amplitude.unsqueeze(-2), reach
        self.u = torch.tanh(x / reach)
        self.t = torch.tanh(n / reach)
        self.first = self.amplitude * self.u
        self.product = self.first * self.t
        self.value = self.product * reach

    def derivatives(self) -> tuple[Tensor, Tensor]:
        """The derivatives with respect to x and n, each of the shape of the value."""
        by_x = torch.addcmul(self.amplitude * self.t, self.product, self.u, value=-1)
        return by_x, torch.addcmul(self.first, self.product, self.t, value=-1)

    def pulled(
        self, derivatives: tuple[Tensor, Tensor], value: Tensor, by_x: Tensor, by_n: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Pull back the cotangents of the value and of its two derivatives.

        Args:
            derivatives: the result of :meth:`derivatives`.
            value: shape ``(N, D)``, as are the others.
            by_x: the cotangent of the derivative with respect to x.
            by_n: the cotangent of the derivative with respect to n.

        Returns:
            The gradients with respect to x, n and the amplitude.
        """
        first, second = derivatives
        # r times the second derivatives: p_xx = -2 u p_x / r, p_nn = -2 t p_n / r, and the mixed
        mixed = torch.addcmul(self.amplitude, self.first, self.u, value=-1)
        mixed = torch.addcmul(mixed, self.t, first, value=-1)
        of_x = torch.addcmul(by_n * mixed, by_x * self.u, first, value=-2)
        of_n = torch.addcmul(by_x * mixed, by_n * self.t, second, value=-2)
        of_x = torch.addcmul(of_x / self.reach, value, first)
        of_n = torch.addcmul(of_n / self.reach, value, second)
        # value and derivatives are proportional to the amplitude
        shares = torch.addcmul(value * self.value, by_x, first).addcmul(by_n, second)
        return of_x, of_n, shares.sum(-2) / self.amplitude.squeeze(-2)


class BranchTangents(Protocol):
    """Products with the Jacobian of a branch."""

    def vjp(self, w: Tensor) -> Tensor:
        """J^T w for w of shape ``(S, *networks, N, 2 D)``."""

    def jvp(self, v: Tensor) -> Tensor:
        """J v for v of shape ``(S, *networks, N, D)``."""


class GateTangents:
    r"""Products with the Jacobians of gated networks.

    :math:`J = \mathrm{diag}(p_x) + \mathrm{diag}(p_n)\,J_n + \mathrm{diag}(b)\,J_m`

    Args:
        branch: products with the Jacobian of the branch, that of n above that of m.
        by_x: the gate's derivative with respect to x, shape ``(*networks, N, D)``.
        by_n: its derivative with respect to n, of the same shape.
        share: b, shape ``(*networks, D)``.
        dtype: dtype of the branch, which autocast may have lowered; default: that of the gate.
    """

    def __init__(
        self,
        branch: BranchTangents,
        by_x: Tensor,
        by_n: Tensor,
        share: Tensor,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.branch = branch
        self.by_x, self.by_n = by_x, by_n
        self.share = share.unsqueeze(-2)
        self.dtype = dtype if dtype is not None else by_n.dtype

    def jvp(self, v: Tensor) -> Tensor:
        """J v for v of shape ``(S, *networks, N, D)``."""
        n, m = self.in_branch(v)
        return v * self.by_x + n * self.by_n + m * self.share

    def vjp(self, w: Tensor) -> Tensor:
        """J^T w for w of shape ``(S, *networks, N, D)``."""
        return w * self.by_x + self.branch.vjp(self.to_branch(w, self.by_n, self.share))

    def in_branch(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """J_n v and J_m v."""
        n, m = self.branch.jvp(v).to(v.dtype).chunk(2, dim=-1)
        return n, m

    def to_branch(self, w: Tensor, by_n: Tensor, share: Tensor) -> Tensor:
        """The cotangents of the branch that belong to cotangents w.

        Args:
            w: the cotangents, any shape that ends in D.
            by_n: the gate's derivative with respect to n, in a shape that broadcasts with w.
            share: b, in such a shape.
        """
        return torch.cat([w * by_n, w * share], dim=-1).to(self.dtype)

    def gradients(self, v: Tensor, w: Tensor) -> list[Tensor]:
        """Those of the branch's tensors, then of the gate's two derivatives, then of b.

        See :meth:`.tangents.Tangents.gradients`.
        """
        assert isinstance(self.branch, PerceptronTangents)  # for the type checker
        n, m = self.in_branch(v)
        of_branch = self.branch.gradients(v, self.to_branch(w, self.by_n, self.share))
        return [*of_branch, (w * v).sum(0), (w * n).sum(0), (w * m).sum((0, -2))]

    def jacobian(self) -> GateRows:
        """The full Jacobian."""
        assert isinstance(self.branch, PerceptronTangents)  # for the type checker
        return GateRows(self, self.branch.jacobian())

    def transposed_jacobian(self) -> Tensor:
        """The transposed Jacobian, ``(*networks, N, D, D)``, without derivatives."""
        assert isinstance(self.branch, PerceptronTangents)  # for the type checker
        return self.rows(*self.branch.transposed_jacobian().chunk(2, dim=-1))

    def rows(self, of_n: Tensor, of_m: Tensor) -> Tensor:
        """The transposed Jacobian from those of n and m."""
        rows = torch.addcmul(of_m * self.share.unsqueeze(-2), of_n, self.by_n.unsqueeze(-2))
        rows.diagonal(dim1=-2, dim2=-1).add_(self.by_x)
        return rows


class GateRows:
    """The transposed Jacobian of gated networks.

    Args:
        gate: the products with the Jacobian.
        branch: the transposed Jacobian of the branch.

    Attributes:
        rows: :math:`J^T`, shape ``(*networks, N, D, D)``.
        entries: number of entries kept for the derivatives.
    """

    def __init__(self, gate: GateTangents, branch: JacobianRows) -> None:
        self.gate = gate
        self.branch = branch
        self.of_n, self.of_m = branch.rows.to(gate.by_n.dtype).chunk(2, dim=-1)
        self.rows = gate.rows(self.of_n, self.of_m)
        self.entries = branch.entries + 3 * self.rows.numel()

    def gradients(self, rows: Tensor) -> list[Tensor]:
        """See :meth:`.tangents.TransposedJacobian.gradients`."""
        of_branch = self.branch.gradients(self.to_branch(rows))
        return [*of_branch, *self.of_gate(rows)]

    def to_branch(self, rows: Tensor) -> Tensor:
        """The cotangents of the branch's rows that belong to cotangents of the rows."""
        share = self.gate.share.unsqueeze(-2)
        return self.gate.to_branch(rows, self.gate.by_n.unsqueeze(-2), share)

    def of_gate(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients with respect to the gate's derivatives and to b."""
        by_x = rows.diagonal(dim1=-2, dim2=-1)
        return by_x, (rows * self.of_n).sum(-2), (rows * self.of_m).sum((-3, -2))


class LinearizedGate:
    r"""The network :math:`g(x) = p(x, n(x)) + b\,m(x)`, linearized at a batch.

    Args:
        x: the batch, shape ``(N, D)``.
        branch: the network that returns n and m, linearized at x, its value of shape ``(N, 2 D)``.
        amplitude: a, shape ``(D,)``.
        share: b, shape ``(D,)``.
        reach: r, a number.

    Attributes:
        value: g(x), shape ``(N, D)``.
    """

    def __init__(
        self, x: Tensor, branch: Linearization, amplitude: Tensor, share: Tensor, reach: float
    ) -> None:
        self.branch = branch
        n, self.shift = branch.value.to(x.dtype).chunk(2, dim=-1)
        self.share = share
        self.gate = Gate(x, n, amplitude, reach)
        self.derivatives = self.gate.derivatives()
        self.tangents = GateTangents(branch, *self.derivatives, share, branch.value.dtype)
        self.value = torch.addcmul(self.gate.value, share, self.shift)

    def jvp(self, v: Tensor) -> Tensor:
        """J v for v of shape ``(S, N, D)``."""
        return self.tangents.jvp(v)

    def vjp(self, w: Tensor) -> Tensor:
        """J^T w for w of shape ``(S, N, D)``."""
        return self.tangents.vjp(w)

    def full_jacobian(self) -> GateJacobian | None:
        """The full Jacobian, if the branch is a perceptron; it overwrites saved values."""
        if not isinstance(self.branch, LinearizedPerceptron):
            return None
        return GateJacobian(self, self.branch.full_jacobian())

    def dual_vjp(
        self,
        v: Tensor,
        value_cotangent: Tensor,
        tangent_cotangents: Tensor,
        needed: Sequence[bool],
    ) -> list[Tensor | None]:
        """See :meth:`pyro_resflow.linearization.Linearization.dual_vjp`; can be called once."""
        n, m = self.tangents.in_branch(v)
        by_x, by_n = ((tangent_cotangents * each).sum(0) for each in (v, n))
        of_share = (tangent_cotangents * m).sum((0, 1))
        tangents = self.tangents.to_branch(tangent_cotangents, self.derivatives[1], self.share)

        def through(value: Tensor) -> list[Tensor | None]:
            return self.branch.dual_vjp(v, value, tangents, needed[:-2])

        return self.pulled(value_cotangent, (by_x, by_n, of_share), through, needed)

    def pulled(
        self,
        value_cotangent: Tensor,
        of_gate: tuple[Tensor, Tensor, Tensor],
        through: Callable[[Tensor], list[Tensor | None]],
        needed: Sequence[bool],
    ) -> list[Tensor | None]:
        """Pull cotangents back through the gate, and then through the branch.

        Args:
            value_cotangent: the cotangent of g(x), shape ``(N, D)``.
            of_gate: the cotangents of the gate's derivatives with respect to x and n, and the
                derivatives' part of the gradient with respect to the share.
            through: pulls the cotangent of the branch's value back through it.
            needed: for x and for each coefficient, whether its gradient is wanted.
        """
        by_x, by_n, of_share = of_gate
        of_x, of_n, of_amplitude = self.gate.pulled(self.derivatives, value_cotangent, by_x, by_n)
        of_value = torch.cat([of_n, value_cotangent * self.share], dim=-1)
        of_point, *inner = through(of_value.to(self.branch.value.dtype))
        of_share = of_share + (value_cotangent * self.shift).sum(0)
        return [
            None if of_point is None else of_x + of_point,
            *inner,
            of_amplitude if needed[-2] else None,
            of_share if needed[-1] else None,
        ]


class GateJacobian:
    """The transposed Jacobian of a :class:`LinearizedGate` at a batch.

    Args:
        linearized: the network at the batch.
        branch: the transposed Jacobian of its branch.

    Attributes:
        rows: :math:`J^T`, shape ``(N, D, D)``.
        entries: number of entries kept for :meth:`pulled`.
    """

    def __init__(self, linearized: LinearizedGate, branch: PerceptronJacobian) -> None:
        self.linearized = linearized
        self.branch = branch
        self.jacobian = GateRows(linearized.tangents, branch.jacobian)
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
        """
        rows = self.jacobian.to_branch(rows_cotangent)
        of_gate = self.jacobian.of_gate(rows_cotangent)

        def through(value: Tensor) -> list[Tensor | None]:
            return self.branch.pulled(value, rows, needed[:-2])

        return self.linearized.pulled(value_cotangent, of_gate, through, needed)
