r"""A product of two bounded functions, and a network that ends in it, linearized at a batch.

The product is :math:`p(x, n) = a\,r \tanh(x/r) \tanh(n/r)`, entry by entry. With
:math:`u = \tanh(x/r)` and :math:`t = \tanh(n/r)` its derivatives are

.. math:: p_x = a\,t\,(1 - u^2), \qquad p_n = a\,u\,(1 - t^2),

and :math:`|p_x| + |p_n| \le a`, because :math:`(1 - u^2) t + u (1 - t^2) = (u + t)(1 - u t) \le 1`
for u and t in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...linearization import Linearization
from .perceptron import LinearizedPerceptron, PerceptronJacobian


class Gate:
    """The product p at a batch, with its first and second derivatives.

    Args:
        x: first factor's argument, shape ``(N, D)``.
        n: second factor's argument, shape ``(N, D)``.
        amplitude: a, positive, shape ``(D,)``.
        reach: r, a positive number.

    Attributes:
        value: the product, shape ``(N, D)``.
        by_x: its derivative with respect to x.
        by_n: its derivative with respect to n.
    """

    def __init__(self, x: Tensor, n: Tensor, amplitude: Tensor, reach: float) -> None:
        self.amplitude, self.reach = amplitude, reach
        self.u = torch.tanh(x / reach)
        self.t = torch.tanh(n / reach)
        self.first = amplitude * self.u
        self.product = self.first * self.t
        self.value = self.product * reach
        self.by_x = torch.addcmul(amplitude * self.t, self.product, self.u, value=-1)
        self.by_n = torch.addcmul(self.first, self.product, self.t, value=-1)

    def pulled(self, value: Tensor, by_x: Tensor, by_n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pull back the cotangents of the value and of its two derivatives.

        Args:
            value: shape ``(N, D)``, as are the others.
            by_x: the cotangent of the derivative with respect to x.
            by_n: the cotangent of the derivative with respect to n.

        Returns:
            The gradients with respect to x, n and the amplitude.
        """
        # r times the second derivatives: p_xx = -2 u p_x / r, p_nn = -2 t p_n / r, and the mixed
        mixed = torch.addcmul(self.amplitude, self.first, self.u, value=-1)
        mixed = torch.addcmul(mixed, self.t, self.by_x, value=-1)
        of_x = torch.addcmul(by_n * mixed, by_x * self.u, self.by_x, value=-2)
        of_n = torch.addcmul(by_x * mixed, by_n * self.t, self.by_n, value=-2)
        of_x = torch.addcmul(of_x / self.reach, value, self.by_x)
        of_n = torch.addcmul(of_n / self.reach, value, self.by_n)
        # value and derivatives are proportional to the amplitude
        shares = torch.addcmul(value * self.value, by_x, self.by_x).addcmul(by_n, self.by_n)
        return of_x, of_n, shares.sum(0) / self.amplitude


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
        self.value = torch.addcmul(self.gate.value, share, self.shift)

    def jvp(self, v: Tensor) -> Tensor:
        """J v for v of shape ``(S, N, D)``."""
        n, m = self.branch.jvp(v).to(v.dtype).chunk(2, dim=-1)
        return v * self.gate.by_x + n * self.gate.by_n + m * self.share

    def vjp(self, w: Tensor) -> Tensor:
        """J^T w for w of shape ``(S, N, D)``."""
        return w * self.gate.by_x + self.branch.vjp(self.to_branch(w, self.gate.by_n))

    def to_branch(self, w: Tensor, by_n: Tensor) -> Tensor:
        """The cotangents of the branch that belong to cotangents w of g."""
        return torch.cat([w * by_n, w * self.share], dim=-1).to(self.branch.value.dtype)

    def full_jacobian(self) -> GateJacobian | None:
        """The full Jacobian, if the branch is a perceptron; it overwrites saved values."""
        return GateJacobian(self) if isinstance(self.branch, LinearizedPerceptron) else None

    def dual_vjp(
        self,
        v: Tensor,
        value_cotangent: Tensor,
        tangent_cotangents: Tensor,
        needed: Sequence[bool],
    ) -> list[Tensor | None]:
        """See :meth:`pyro_resflow.linearization.Linearization.dual_vjp`; can be called once."""
        n, m = self.branch.jvp(v).to(v.dtype).chunk(2, dim=-1)
        tangents = self.to_branch(tangent_cotangents, self.gate.by_n)
        return self.pulled(
            value_cotangent,
            by_x=(tangent_cotangents * v).sum(0),
            by_n=(tangent_cotangents * n).sum(0),
            of_share=(tangent_cotangents * m).sum((0, 1)),
            through=lambda value: self.branch.dual_vjp(v, value, tangents, needed[:-2]),
            needed=needed,
        )

    def pulled(
        self,
        value_cotangent: Tensor,
        *,
        by_x: Tensor,
        by_n: Tensor,
        of_share: Tensor,
        through: Callable[[Tensor], list[Tensor | None]],
        needed: Sequence[bool],
    ) -> list[Tensor | None]:
        """Pull cotangents back through the gate, and then through the branch.

        Args:
            value_cotangent: the cotangent of g(x), shape ``(N, D)``.
            by_x: the cotangent of the gate's derivative with respect to x.
            by_n: the cotangent of the gate's derivative with respect to n.
            of_share: the derivatives' part of the gradient with respect to the share.
            through: pulls the cotangent of the branch's value back through it.
            needed: for x and for each coefficient, whether its gradient is wanted.
        """
        of_x, of_n, of_amplitude = self.gate.pulled(value_cotangent, by_x, by_n)
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
        linearized: the network at the batch; its branch is a perceptron.

    Attributes:
        rows: :math:`J^T`, shape ``(N, D, D)``.
        entries: number of entries kept for :meth:`pulled`.
    """

    def __init__(self, linearized: LinearizedGate) -> None:
        assert isinstance(linearized.branch, LinearizedPerceptron)  # for the type checker
        self.linearized = linearized
        self.branch = PerceptronJacobian(linearized.branch)
        gate = linearized.gate
        of_n, of_m = self.branch.rows.to(gate.value.dtype).chunk(2, dim=-1)
        self.of_n, self.of_m = of_n, of_m
        rows = torch.addcmul(of_m * linearized.share, of_n, gate.by_n[:, None])
        rows.diagonal(dim1=-2, dim2=-1).add_(gate.by_x)
        self.rows = rows
        self.entries = self.branch.entries + 3 * rows.numel()

    def pulled(
        self, value_cotangent: Tensor, rows_cotangent: Tensor, needed: Sequence[bool]
    ) -> list[Tensor | None]:
        """Pull back the cotangents of value and rows; call it once, as it overwrites saved values.

        Args:
            value_cotangent: shape ``(N, D)``.
            rows_cotangent: shape ``(N, D, D)``.
            needed: for x and for each coefficient, whether its gradient is wanted.
        """
        rows = self.linearized.to_branch(rows_cotangent, self.linearized.gate.by_n[:, None])
        return self.linearized.pulled(
            value_cotangent,
            by_x=rows_cotangent.diagonal(dim1=-2, dim2=-1),
            by_n=(rows_cotangent * self.of_n).sum(1),
            of_share=(rows_cotangent * self.of_m).sum((0, 1)),
            through=lambda value: self.branch.pulled(value, rows, needed[:-2]),
            needed=needed,
        )
