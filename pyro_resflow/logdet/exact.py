"""The log-determinant itself, from the whole Jacobian."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from ..differentiation import (
    is_transformed,
    needs_graph,
    pulled_back,
    torch_func_is_active,
)
from ..linearization import (
    AutogradNetwork,
    Linearizable,
    Linearization,
    differentiable_point,
)
from ..precision import SurroundingPrecision, full_precision
from .base import LogDetEstimator
from .functions import LOG_ONE_PLUS, SpectralFunction


class Exact(LogDetEstimator):
    r"""log|det(I + J)| of the full Jacobian; deterministic, differentiable any number of times.

    Costs one product with the Jacobian per dimension and :math:`O(D^3)` for the determinant: about
    as much as an estimate up to 8 dimensions in batches of hundreds, and the choice for contract
    tests, Hamiltonian Monte Carlo and importance-weighted bounds. The gradient is that of
    :math:`\sum_i w_i^T J e_i` at fixed :math:`w_i = (I+J)^{-T} e_i`, in one pass over the network.
    For the trace of another :class:`SpectralFunction` f, :math:`w_i = f'(J)^T e_i`.

    Args:
        dtype: type in which the determinant is computed from the Jacobian; default: the
            network's. To evaluate the network in another type too, convert the flow:
            ``flow.double()``.
        chunk_size: columns of the Jacobian computed at once; default: all of them.

    Raises:
        ValueError: for a chunk size below 1.

    Example:
        >>> import torch
        >>> from pyro_resflow.logdet import Exact
        >>> from pyro_resflow.nn import LipschitzMLP
        >>> g, logdet = Exact(dtype=torch.float64)(LipschitzMLP(3), torch.randn(7, 3))
        >>> logdet.dtype
        torch.float32
    """

    is_deterministic = True

    def __init__(self, *, dtype: torch.dtype | None = None, chunk_size: int | None = None) -> None:
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size: expected an integer of at least 1, got {chunk_size}.")
        self.dtype = dtype
        self.chunk_size = chunk_size

    def value_and_trace(
        self, net: Linearizable, x: Tensor, function: SpectralFunction
    ) -> tuple[Tensor, Tensor]:
        coefficients = net.coefficients()
        if isinstance(net, AutogradNetwork) or is_transformed(x, *coefficients):
            g, logdet = self.by_autograd(net, x, coefficients, function)
        else:
            g, logdet = _ExactLogDet.apply(
                self, net, function, torch.is_grad_enabled(), x, *coefficients
            )
        return g.to(x.dtype), logdet.to(x.dtype)

    def by_autograd(
        self,
        net: Linearizable,
        x: Tensor,
        coefficients: Sequence[Tensor],
        function: SpectralFunction = LOG_ONE_PLUS,
    ) -> tuple[Tensor, Tensor]:
        """The same through autograd alone: for any module, and for all of its derivatives."""
        if isinstance(net, AutogradNetwork):
            by = self._by_torch_func if torch_func_is_active() else self._by_the_engine
            g, matrix = by(net, x, coefficients)  # the transpose, which has the same trace
        else:
            linearization = net.linearize(x, coefficients)
            g = linearization.value
            matrix = torch.cat([linearization.jvp(units) for units in self.units(g)])
        return g, _differentiable_trace(function, self.jacobian(matrix))

    def _by_torch_func(
        self, net: Linearizable, x: Tensor, coefficients: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        vjp: Any = torch.func.vjp  # of a return type that depends on its arguments
        g, pull = vjp(lambda point: net.evaluate(point, coefficients), x)
        rows = [torch.func.vmap(pull)(chunk)[0] for chunk in self.units(g)]
        return g, torch.cat(rows)

    def _by_the_engine(
        self, net: Linearizable, x: Tensor, coefficients: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        differentiable = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            point = differentiable_point(x)
            g = net.evaluate(point, coefficients)
            rows = [
                torch.autograd.grad(
                    g,
                    point,
                    chunk,
                    is_grads_batched=True,
                    create_graph=differentiable,
                    retain_graph=True,
                    materialize_grads=True,
                )[0]
                for chunk in self.units(g)
            ]
        together = torch.cat(rows)
        return (g, together) if differentiable else (g.detach(), together.detach())

    def units(self, x: Tensor) -> Iterator[Tensor]:
        """The unit vectors of every sample, ``(D, N, *event)``, in chunks."""
        size = x.shape[1:].numel()
        units = torch.eye(size, dtype=x.dtype, device=x.device).view(size, 1, *x.shape[1:])
        yield from units.expand(size, *x.shape).split(self.chunk_size or max(1, size))

    def jacobian(self, columns: Tensor) -> Tensor:
        """J of each sample, shape ``(N, D, D)``, from its columns, shape ``(D, N, *event)``."""
        # linear algebra knows no half precision, in which autocast leaves a network's output
        dtype = self.dtype or torch.promote_types(columns.dtype, torch.float32)
        return columns.flatten(2).permute(1, 2, 0).to(dtype)


def _trace(function: SpectralFunction, jacobian: Tensor) -> Tensor:
    """tr f(J) of each sample, shape ``(N,)``."""
    logdets = [s * torch.linalg.slogdet(_shifted(jacobian, t))[1] for s, t in function.terms]
    return torch.stack(logdets).sum(0)


def _differentiable_trace(function: SpectralFunction, jacobian: Tensor) -> Tensor:
    """The same, with derivatives of all orders in both modes.

    By the factors of Gauss's elimination: of ``torch.linalg.slogdet`` a derivative in forward mode
    has none of its own but zero.
    """
    factors = [(s, torch.linalg.lu_factor_ex(_shifted(jacobian, t))[0]) for s, t in function.terms]
    pivots = [(s, factor.diagonal(dim1=-2, dim2=-1)) for s, factor in factors]
    return reduce(torch.add, (s * pivot.abs().log().sum(-1) for s, pivot in pivots))


def _derivative(function: SpectralFunction, jacobian: Tensor) -> Tensor:
    """f'(J) of each sample, shape ``(N, D, D)``."""
    inverses = [s * t * torch.linalg.inv(_shifted(jacobian, t)) for s, t in function.terms]
    return torch.stack(inverses).sum(0)


def _shifted(jacobian: Tensor, t: float) -> Tensor:
    """I + t J."""
    size = jacobian.shape[-1]
    return t * jacobian + torch.eye(size, dtype=jacobian.dtype, device=jacobian.device)


class _ExactLogDet(torch.autograd.Function):
    """g(x) and the log-determinant; the columns of J are tangents of the unit vectors."""

    @staticmethod
    def forward(
        ctx: Any,
        exact: Exact,
        net: Linearizable,
        function: SpectralFunction,
        differentiable: bool,
        x: Tensor,
        *coefficients: Tensor,
    ) -> tuple[Tensor, Tensor]:
        linearization = net.linearize(x.detach(), coefficients)
        value = linearization.value
        columns = torch.cat([linearization.jvp(units) for units in exact.units(value)])
        with full_precision(x):
            jacobian = exact.jacobian(columns)
            logdet = _trace(function, jacobian)
            adjoints = None
            if differentiable:  # ctx.needs_input_grad does not know of torch.no_grad
                adjoints = _derivative(function, jacobian).permute(1, 0, 2).to(value.dtype)
        ctx.exact, ctx.net, ctx.function = exact, net, function
        ctx.ambient = SurroundingPrecision.of(x)
        ctx.linearization = linearization if exact.chunk_size is None else None
        ctx.save_for_backward(x, adjoints, *coefficients)
        # what is returned refers to this node, and what the node holds must not refer back
        return value.detach(), logdet

    @staticmethod
    def backward(ctx: Any, grad_g: Tensor, grad_logdet: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # to be asked for once: a checkpoint computes them anew
        x, _, *coefficients = saved
        with ctx.ambient.in_force():
            if needs_graph(x, grad_g, grad_logdet, *coefficients):
                gradients = _ExactLogDet._by_autograd(ctx, x, coefficients, grad_g, grad_logdet)
            else:
                gradients = _ExactLogDet._by_adjoints(ctx, saved, grad_g, grad_logdet)
        tensors = zip(gradients, (x, *coefficients), strict=True)
        cast = (g if g is None else g.to(tensor.dtype) for g, tensor in tensors)
        return None, None, None, None, *cast

    @staticmethod
    def _by_autograd(
        ctx: Any, x: Tensor, coefficients: Sequence[Tensor], grad_g: Tensor, grad_logdet: Tensor
    ) -> Sequence[Tensor | None]:
        """Gradients that can be differentiated again."""

        def outputs(x: Tensor, *coefficients: Tensor) -> tuple[Tensor, Tensor]:
            return ctx.exact.by_autograd(ctx.net, x, coefficients, ctx.function)

        cotangents = (grad_g, grad_logdet)
        return pulled_back(outputs, [x, *coefficients], cotangents, ctx.needs_input_grad[4:])

    @staticmethod
    def _by_adjoints(
        ctx: Any, saved: Sequence[Tensor], grad_g: Tensor, grad_logdet: Tensor
    ) -> Sequence[Tensor | None]:
        x, adjoints, *coefficients = saved
        needed = ctx.needs_input_grad[4:]
        weighted = adjoints.unflatten(2, x.shape[1:]) * grad_logdet.view(-1, *[1] * (x.dim() - 1))
        parts = []
        for units in ctx.exact.units(x):
            linearization = _ExactLogDet._linearization(ctx, x, coefficients)
            part, weighted = weighted[: len(units)], weighted[len(units) :]
            parts.append(linearization.dual_vjp(units, grad_g, part, needed))
            grad_g = torch.zeros_like(grad_g)  # counts once
        return [None if each[0] is None else sum(each) for each in zip(*parts, strict=True)]

    @staticmethod
    def _linearization(ctx: Any, x: Tensor, coefficients: list[Tensor]) -> Linearization:
        kept, ctx.linearization = ctx.linearization, None
        if kept is not None:
            return kept
        return ctx.net.linearize(x.detach(), coefficients)
