r"""The one autograd function that all stochastic estimators share.

An estimator supplies, from products with the Jacobian at x, an unbiased value q of
log|det(I + J)| and an unbiased vector :math:`w = (I+J)^{-T} e` for each probe e. The gradient is
then that of :math:`w^T J(x, \theta)\, e` at fixed e and w, since
:math:`d \log\det(I+J) = \mathrm{tr}[(I+J)^{-1} dJ] = E[w^T\, dJ\, e]`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..linearization import (
    Linearizable,
    Linearization,
    call_with_tensors,
    first_derivative_only,
    gradients_where_needed,
    without_autocast,
)

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
    net: Linearizable, estimation: Estimation, probes: Tensor, memory: Memory, x: Tensor
) -> tuple[Tensor, Tensor]:
    """g(x) and an estimate of log|det(I + J_g(x))|, with right gradients for both.

    Args:
        net: the network g.
        estimation: maps the vjp at x and the probes to an :class:`Estimate`.
        probes: shape ``(S, N, *event)``.
        memory: ``"recompute"`` keeps x, the probes and the adjoints for the backward pass and
            runs the network again there; ``"keep"`` keeps the network's activations, which saves
            one pass and costs their memory.
        x: shape ``(N, *event)``.

    Returns:
        g(x) of shape ``(N, *event)`` and the log-determinant, averaged over probes, of ``(N,)``.
    """
    return _ValueAndLogDet.apply(net, estimation, probes, memory, x, *net.tensors())


class _ValueAndLogDet(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        net: Linearizable,
        estimation: Estimation,
        probes: Tensor,
        memory: Memory,
        x: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.net = net
        ctx.autocast = _autocast_state(x)
        keep = memory == "keep" and any(ctx.needs_input_grad)
        with torch.set_grad_enabled(keep):
            point = x.detach().requires_grad_(keep)
            linearization = net.linearize(point)
        ambient = ctx.autocast

        def vjp(w: Tensor) -> Tensor:
            with ambient:
                return linearization.vjp(w)

        with torch.no_grad(), without_autocast(x):
            value, adjoint = estimation(vjp, probes)
        ctx.graph = _DualGraph.of(linearization, point, probes) if keep else None
        ctx.save_for_backward(x, probes, adjoint, *tensors)
        return linearization.value.detach(), value.mean(0)

    @staticmethod
    def backward(ctx: Any, grad_g: Tensor, grad_logdet: Tensor) -> tuple[Tensor | None, ...]:
        graph, ctx.graph = ctx.graph, None
        with torch.no_grad():
            gradients = _ValueAndLogDet._gradients(ctx, graph, grad_g, grad_logdet)
        remedy = "a stochastic log-determinant is differentiable once; use logdet=Exact()."
        return (None, None, None, None, *first_derivative_only(gradients, remedy))

    @staticmethod
    def _gradients(
        ctx: Any, graph: _DualGraph | None, grad_g: Tensor, grad_logdet: Tensor
    ) -> list[Tensor | None]:
        x, probes, adjoint, *tensors = ctx.saved_tensors
        if graph is None:
            graph = _DualGraph.computed(ctx.net, tensors, x, probes, ctx.autocast)
        weight = grad_logdet / len(probes)
        weighted = adjoint * weight.reshape(1, -1, *[1] * (x.dim() - 1))
        return gradients_where_needed(
            [graph.value, graph.tangent],
            [grad_g.to(graph.value.dtype), weighted.to(graph.tangent.dtype)],
            [graph.point, *tensors],
            ctx.needs_input_grad[4:],
        )


class _DualGraph(NamedTuple):
    """g(x) and J_g(x) e with a graph that leads back to x and the parameters."""

    point: Tensor
    value: Tensor
    tangent: Tensor

    @classmethod
    def of(cls, linearization: Linearization, point: Tensor, probes: Tensor) -> _DualGraph:
        with torch.enable_grad():
            return cls(point, linearization.value, linearization.jvp(probes))

    @classmethod
    def computed(
        cls,
        net: Linearizable,
        tensors: list[Tensor],
        x: Tensor,
        probes: Tensor,
        autocast: AbstractContextManager[None],
    ) -> _DualGraph:
        with torch.enable_grad(), autocast:
            point = x.detach().requires_grad_()
            return cls(point, *call_with_tensors(net, tensors, net.dual, point, probes))


def _autocast_state(x: Tensor) -> AbstractContextManager[None]:
    """A context that restores the autocast setting of now in the backward pass."""
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind):
        return torch.autocast("cpu", enabled=False)
    return torch.autocast(
        kind, dtype=torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind)
    )
