r"""The one autograd function that all stochastic estimators share.

An estimator supplies, from products with the Jacobian at x, an unbiased value q of
log|det(I + J)| and an unbiased vector :math:`w = (I+J)^{-T} e` for each probe e. The gradient is
then that of :math:`w^T J(x, \theta)\, e` at fixed e and w, since
:math:`d \log\det(I+J) = \mathrm{tr}[(I+J)^{-1} dJ] = E[w^T\, dJ\, e]`. The trace of any other
function f of the Jacobian has :math:`w = f'(J)^T e` and the same gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..linearization import Linearizable, first_derivative_only
from ..precision import Ambient, full_precision
from .probes import Probe

Vjp = Callable[[Tensor], Tensor]
Memory = Literal["recompute", "keep"]


class Estimate(NamedTuple):
    """What an estimator finds for each probe.

    Attributes:
        value: q, shape ``(S, N)``.
        adjoint: w, shape ``(S, N, *event)``.
    """

    value: Tensor
    adjoint: Tensor


Estimation = Callable[[Vjp, Tensor], Estimate]


def value_and_logdet(
    net: Linearizable,
    estimation: Estimation,
    probe: Probe,
    num_probes: int,
    memory: Memory,
    x: Tensor,
) -> tuple[Tensor, Tensor]:
    """g(x) and an estimate of log|det(I + J_g(x))|, with right gradients for both.

    Args:
        net: the network g.
        estimation: maps the vjp at x and the probes to an :class:`Estimate`.
        probe: distribution of the probes.
        num_probes: S.
        memory: ``"recompute"`` keeps x, the probes and the adjoints for the backward pass and
            runs the network again there; ``"keep"`` keeps the network's activations, which saves
            one pass and costs their memory.
        x: shape ``(N, *event)``.

    Returns:
        g(x) of shape ``(N, *event)`` and the log-determinant, averaged over probes, of ``(N,)``.
    """
    return _ValueAndLogDet.apply(
        net, estimation, probe, num_probes, memory, x, *net.coefficients()
    )


class _ValueAndLogDet(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        net: Linearizable,
        estimation: Estimation,
        probe: Probe,
        num_probes: int,
        memory: Memory,
        x: Tensor,
        *coefficients: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ambient = Ambient.of(x)
        linearization = net.linearize(x.detach(), coefficients)

        def vjp(w: Tensor) -> Tensor:
            with ambient.in_force():
                return linearization.vjp(w)

        value = linearization.value
        probes = probe.draw(x, num_probes)
        with full_precision(x):
            estimate = estimation(vjp, probes)
        ctx.net, ctx.ambient, ctx.probe = net, ambient, probe
        ctx.linearization = linearization if memory == "keep" else None
        ctx.save_for_backward(x, probe.pack(probes), estimate.adjoint, *coefficients)
        return value, estimate.value.mean(0)

    @staticmethod
    def backward(ctx: Any, grad_g: Tensor, grad_logdet: Tensor) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            gradients = _ValueAndLogDet._gradients(ctx, grad_g, grad_logdet)
        remedy = "a stochastic log-determinant is differentiable once; use logdet=Exact()."
        return (None, None, None, None, None, *first_derivative_only(gradients, remedy))

    @staticmethod
    def _gradients(ctx: Any, grad_g: Tensor, grad_logdet: Tensor) -> list[Tensor | None]:
        x, packed, adjoint, *coefficients = ctx.saved_tensors
        probes = ctx.probe.unpack(packed, x)
        linearization, ctx.linearization = ctx.linearization, None
        weight = grad_logdet / len(probes)
        weighted = adjoint * weight.reshape(1, -1, *[1] * (x.dim() - 1))
        with ctx.ambient.in_force():
            if linearization is None:
                linearization = ctx.net.linearize(x.detach(), coefficients)
            found = linearization.dual_vjp(probes, grad_g, weighted, ctx.needs_input_grad[5:])
        return [
            None if gradient is None else gradient.to(tensor.dtype)
            for gradient, tensor in zip(found, (x, *coefficients), strict=True)
        ]
