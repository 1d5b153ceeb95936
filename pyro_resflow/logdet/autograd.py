r"""The autograd function that all stochastic estimators share.

An estimator computes, from products with the Jacobian at x, an unbiased estimate q of
log|det(I + J)| and an unbiased vector :math:`w = (I+J)^{-T} e` for each probe e. The gradient is
then that of :math:`w^T J(x, \theta)\, e` at fixed e and w, since
:math:`d \log\det(I+J) = \mathrm{tr}[(I+J)^{-1} dJ] = E[w^T\, dJ\, e]`. The trace of any other
function f of the Jacobian has :math:`w = f'(J)^T e` and a gradient of the same form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..differentiation import (
    added,
    forward_rule,
    is_only_evaluated,
    needs_graph,
    only,
    pulled_back,
    pushed_forward,
    refusing,
    with_signature,
)
from ..linearization import Linearizable
from ..precision import SurroundingPrecision, full_precision
from ..vmapped import VmappedNetwork, folded
from .probes import Probe

REMEDY = "a stochastic log-determinant is differentiable only once, use logdet=Exact()."

Vjp = Callable[[Tensor], Tensor]
Memory = Literal["recompute", "keep"]


class Estimate(NamedTuple):
    """The estimate from each probe.

    Attributes:
        value: the estimate q, shape ``(S, N)``.
        adjoint: the vector w, shape ``(S, N, *event)``.
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
    """g(x) and an estimate of log|det(I + J_g(x))|, with gradients for both.

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
    coefficients = net.coefficients()
    if torch.is_grad_enabled() or not is_only_evaluated(x, *coefficients):
        value, logdet, *_ = _ValueAndLogDet.apply(
            net, estimation, probe, num_probes, memory, x, *coefficients
        )
        return value, logdet
    token = VALUE_ONLY.set(True)
    try:
        value, logdet, *_ = _ValueAndLogDet.forward(
            net, estimation, probe, num_probes, memory, x, *coefficients
        )
    finally:
        VALUE_ONLY.reset(token)
    return value, logdet


VALUE_ONLY: ContextVar[bool] = ContextVar("value_only", default=False)
"""Whether the estimate that is being computed will have no gradient. Any tensor of the adjoint's
shape may then take its place."""


class _ValueAndLogDet(torch.autograd.Function):
    @staticmethod
    @with_signature
    def forward(
        net: Linearizable,
        estimation: Estimation,
        probe: Probe,
        num_probes: int,
        memory: Memory,
        x: Tensor,
        *coefficients: Tensor,
    ) -> tuple[Any, ...]:
        """The value, the log-determinant, and the saved values for the derivatives."""
        linearization = net.linearize(x.detach(), coefficients)
        value = linearization.value
        probes = probe.draw(x, num_probes)
        ambient = SurroundingPrecision.of(x)
        with full_precision(x):
            # the network's products keep the surrounding precision, the estimate is in full
            estimate = estimation(ambient.kept_by(linearization.vjp), probes)
        kept = None
        if memory == "keep":
            # outputs refer to the autograd node, so the node must not hold an output
            kept, value = linearization, value.detach()
        return value, estimate.value.mean(0), probe.pack(probes), estimate.adjoint, ambient, kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        ctx.net, _, ctx.probe, _, _, x, *coefficients = inputs
        _, _, packed, adjoint, ctx.ambient, ctx.linearization = output
        ctx.mark_non_differentiable(packed, adjoint)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, packed, adjoint, *coefficients)
        ctx.save_for_forward(x, packed, adjoint, *coefficients)

    @staticmethod
    def backward(
        ctx: Any, grad_g: Tensor | None, grad_logdet: Tensor | None, *_: None
    ) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # read once: a checkpoint recomputes them at each access
        x, _, _, *coefficients = saved
        again = needs_graph(x, grad_g, grad_logdet, *coefficients)
        by = _ValueAndLogDet._by_autograd if again else _ValueAndLogDet._by_hand
        with ctx.ambient.in_force():
            found = by(ctx, saved, grad_g, grad_logdet)
        gradients = [
            None if gradient is None else gradient.to(tensor.dtype)
            for gradient, tensor in zip(found, (x, *coefficients), strict=True)
        ]
        return (None, None, None, None, None, *gradients)

    @staticmethod
    def _by_hand(
        ctx: Any, saved: Sequence[Tensor], grad_g: Tensor | None, grad_logdet: Tensor | None
    ) -> Sequence[Tensor | None]:
        x, packed, adjoint, *coefficients = saved
        probes = ctx.probe.unpack(packed, x)
        linearization, ctx.linearization = ctx.linearization, None
        if linearization is None:
            linearization = ctx.net.linearize(x.detach(), coefficients)
        if grad_g is None:
            grad_g = torch.zeros_like(x)
        weighted = _weighted(adjoint, grad_logdet)
        found: Sequence[Tensor | None] = linearization.dual_vjp(
            probes, grad_g, weighted, ctx.needs_input_grad[5:]
        )
        return found

    @staticmethod
    def _by_autograd(
        ctx: Any, saved: Sequence[Tensor], grad_g: Tensor | None, grad_logdet: Tensor | None
    ) -> Sequence[Tensor | None]:
        """Gradients; those that come from the value can be differentiated again."""
        x, packed, adjoint, *coefficients = saved
        needed = ctx.needs_input_grad[5:]
        point = [x, *coefficients]
        parts = []
        if grad_g is not None:
            parts.append(pulled_back(partial(_evaluate, ctx.net), point, grad_g, needed))
        if grad_logdet is not None:
            weighted = _weighted(adjoint, grad_logdet)
            refused = [refusing(tensor, REMEDY) for tensor in point]
            for probe, w in zip(ctx.probe.unpack(packed, x), weighted, strict=True):
                along = partial(_pulled_to_input, ctx.net, w)
                parts.append(pulled_back(along, refused, probe, needed))
        return [added(each) for each in zip(*parts, strict=True)] or [None] * len(point)

    @staticmethod
    @forward_rule
    def jvp(
        ctx: Any, saved: Sequence[Tensor], *tangents: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x, packed, adjoint, *coefficients = saved
        point, along = [x, *coefficients], tangents[5:]
        refused = [refusing(tensor, REMEDY) for tensor in point]
        pairs = list(zip(ctx.probe.unpack(packed, x), adjoint, strict=True))
        with ctx.ambient.in_force():
            value = pushed_forward(partial(_evaluate, ctx.net), point, along, x)
            products = [partial(_product, ctx.net, e, w) for e, w in pairs]
            like = x.flatten(1).sum(1)
            logdets = [pushed_forward(product, refused, along, like) for product in products]
        return value, torch.stack(logdets).mean(0), None, None, None, None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        net: Linearizable,
        estimation: Estimation,
        probe: Probe,
        num_probes: int,
        memory: Memory,
        x: Tensor,
        *coefficients: Tensor,
    ) -> tuple[tuple[Any, ...], tuple[int | None, ...]]:
        if info.randomness != "different" and not probe.is_frozen:
            raise RuntimeError(
                f"logdet: expected torch.func.vmap(..., randomness='different'), because a "
                f"stochastic log-determinant draws separate probes for each sample, got "
                f"randomness={info.randomness!r}; or use logdet=Exact(), which draws none."
            )
        mapped = VmappedNetwork(net, info.batch_size, in_dims[6:])
        flat = folded(x, in_dims[5], info.batch_size)
        value, logdet, packed, adjoint, ambient, _ = _ValueAndLogDet.apply(
            mapped, estimation, probe, num_probes, "recompute", flat, *coefficients
        )
        shape = mapped.split(flat)
        if not probe.is_frozen:  # frozen probes are the same for all samples
            packed = packed.unflatten(1, shape)
        outputs = (value.unflatten(0, shape), logdet.unflatten(0, shape), packed)
        dims = (0, 0, None if probe.is_frozen else 1, 1, None, None)
        return (*outputs, adjoint.unflatten(1, shape), ambient, None), dims


def _weighted(adjoint: Tensor, grad_logdet: Tensor | None) -> Tensor:
    """The adjoints times each sample's incoming gradient, divided by the number of probes."""
    if grad_logdet is None:
        return torch.zeros_like(adjoint)
    weight = grad_logdet / len(adjoint)
    return adjoint * weight.reshape(1, -1, *[1] * (adjoint.dim() - 2))


def _evaluate(net: Linearizable, x: Tensor, *coefficients: Tensor) -> Tensor:
    return net.evaluate(x, coefficients)


def _pulled_to_input(net: Linearizable, w: Tensor, x: Tensor, *coefficients: Tensor) -> Tensor:
    """J^T w, of the shape of x."""
    return only(pulled_back(lambda point: net.evaluate(point, coefficients), [x], w))


def _product(net: Linearizable, e: Tensor, w: Tensor, x: Tensor, *coefficients: Tensor) -> Tensor:
    """w J e of each sample, shape ``(N,)``."""
    return (_pulled_to_input(net, w, x, *coefficients) * e).flatten(1).sum(1)
