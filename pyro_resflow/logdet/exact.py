"""The exact log-determinant, from the full Jacobian."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..arnoldi import weighted_sum
from ..differentiation import (
    is_transformed,
    needs_graph,
    pulled_back,
    torch_func_is_active,
)
from ..linearization import AutogradNetwork, Linearizable, differentiable_point
from ..precision import SurroundingPrecision, full_precision
from .estimator import LogDetEstimator
from .functions import LOG_ONE_PLUS, SpectralFunction
from .jacobians import (
    KEPT_ENTRIES,
    FullJacobian,
    JacobianByProducts,
    full_jacobian,
    identity,
    transposed_jacobian,
    unit_vectors,
)


class Exact(LogDetEstimator):
    r"""log|det(I + J)| of the full Jacobian; deterministic, differentiable any number of times.

    It costs one product with the Jacobian per dimension, and :math:`O(D^3)` for the determinant.
    Up to 8 dimensions, in batches of tens, this is about as much as an estimate; in 8 dimensions
    and batches of hundreds an estimate takes half as long. Use it for Hamiltonian Monte Carlo,
    importance-weighted bounds and tests. The gradient is that of :math:`\sum_i w_i^T J e_i` at
    fixed :math:`w_i = (I+J)^{-T} e_i`, in one pass over the network. For the trace of another
    :class:`SpectralFunction` f, :math:`w_i = f'(J)^T e_i`. The Jacobian of a multilayer perceptron
    is multiplied out layer by layer; the Jacobian of any other network consists of its products
    with the unit vectors.

    Args:
        dtype: dtype in which the determinant is computed from the Jacobian; default: that of the
            network, at least float32. To evaluate the network in another dtype too, convert the
            flow: ``flow.double()``.
        chunk_size: number of columns of the Jacobian computed at once; default: all of them.

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
        elif torch.is_grad_enabled():
            g, logdet = _ExactLogDet.apply(self, net, function, x, *coefficients)
        else:
            g, logdet = self._evaluated(net, x, coefficients, function)
        return g.to(x.dtype), logdet.to(x.dtype)

    def _evaluated(
        self,
        net: Linearizable,
        x: Tensor,
        coefficients: Sequence[Tensor],
        function: SpectralFunction,
    ) -> tuple[Tensor, Tensor]:
        """The value and the trace, without derivatives."""
        if self.chunk_size is None:
            linearization = net.linearize(x, coefficients)
            value, rows = linearization.value, transposed_jacobian(linearization)
        else:
            value, jacobian = self.jacobian(net, x, coefficients)
            rows = jacobian.rows
        with full_precision(x):
            return value, _trace(_factorized(function, self.in_full(rows)))

    def by_autograd(
        self,
        net: Linearizable,
        x: Tensor,
        coefficients: Sequence[Tensor],
        function: SpectralFunction = LOG_ONE_PLUS,
    ) -> tuple[Tensor, Tensor]:
        """The value and the trace by autograd alone, for any module and all derivatives."""
        if isinstance(net, AutogradNetwork):
            by = self._by_torch_func if torch_func_is_active() else self._by_the_engine
            g, matrix = by(net, x, coefficients)  # the transpose, of the same trace
        else:
            linearization = net.linearize(x, coefficients)
            g = linearization.value
            matrix = torch.cat([linearization.jvp(units) for units in self._units(g)])
        return g, _trace(_factorized(function, self.in_full(matrix.flatten(2).movedim(1, 0))))

    def _by_torch_func(
        self, net: Linearizable, x: Tensor, coefficients: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        vjp: Any = torch.func.vjp  # its return type depends on its arguments
        g, pull = vjp(lambda point: net.evaluate(point, coefficients), x)
        rows = [torch.func.vmap(pull)(chunk)[0] for chunk in self._units(g)]
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
                for chunk in self._units(g)
            ]
        together = torch.cat(rows)
        return (g, together) if differentiable else (g.detach(), together.detach())

    def _units(self, x: Tensor) -> Iterator[Tensor]:
        return unit_vectors(x, self.chunk_size)

    def jacobian(
        self, net: Linearizable, x: Tensor, coefficients: Sequence[Tensor]
    ) -> tuple[Tensor, FullJacobian]:
        """g(x) and the full Jacobian of g at x, shape ``(N, *event)``."""
        linearization = net.linearize(x, coefficients)
        if self.chunk_size is None:
            return linearization.value, full_jacobian(linearization)
        again = partial(net.linearize, x, coefficients)
        return linearization.value, JacobianByProducts(linearization, again, self.chunk_size)

    def in_full(self, matrix: Tensor) -> Tensor:
        """Convert a Jacobian to the dtype in which the determinant is computed."""
        # torch.linalg does not support half precision, the dtype of networks under autocast
        return matrix.to(self.dtype or torch.promote_types(matrix.dtype, torch.float32))


class _Factorized(NamedTuple):
    """The LU factorization of I + tJ, the matrix of one logarithm.

    Attributes:
        s: the factor of the logarithm.
        t: the factor of the Jacobian.
        factors: L and U in one matrix, shape ``(N, D, D)``.
        pivots: the pivots, shape ``(N, D)``.
    """

    s: float
    t: float
    factors: Tensor
    pivots: Tensor


def _factorized(function: SpectralFunction, jacobian: Tensor) -> list[_Factorized]:
    """Factorize the matrices of all logarithms; differentiable to any order in both modes.

    ``torch.linalg.slogdet`` does not serve: the derivative of its forward-mode derivative is zero.
    """
    unit = identity(jacobian.shape[-1], jacobian.dtype, jacobian.device)
    found = []
    for s, t in function.terms:
        factors, pivots, _ = torch.linalg.lu_factor_ex(torch.add(unit, jacobian, alpha=t))
        found.append(_Factorized(s, t, factors, pivots))
    return found


def _trace(matrices: Sequence[_Factorized]) -> Tensor:
    """tr f(J) of each sample, shape ``(N,)``."""
    logdets, factors = [], []
    for each in matrices:
        logdets.append(each.factors.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1))
        factors.append(each.s)
    return weighted_sum(logdets, factors)


def _derivative(matrices: Sequence[_Factorized]) -> Tensor:
    """The transpose of f'(J) of each sample, shape ``(N, D, D)``."""
    like = matrices[0].factors
    unit = identity(like.shape[-1], like.dtype, like.device).expand_as(like)
    inverses, factors = [], []
    for each in matrices:
        # with adjoint=True, the solution of small systems takes half as long again
        inverses.append(torch.linalg.lu_solve(each.factors, each.pivots, unit))
        factors.append(each.s * each.t)
    return weighted_sum(inverses, factors).mT.contiguous()


class _ExactLogDet(torch.autograd.Function):
    """g(x) and the log-determinant, whose gradient uses the transposed inverse of I + J."""

    @staticmethod
    def forward(
        ctx: Any,
        exact: Exact,
        net: Linearizable,
        function: SpectralFunction,
        x: Tensor,
        *coefficients: Tensor,
    ) -> tuple[Tensor, Tensor]:
        value, jacobian = exact.jacobian(net, x.detach(), coefficients)
        with full_precision(x):
            matrices = _factorized(function, exact.in_full(jacobian.rows))
            logdet = _trace(matrices)
        ctx.exact, ctx.net, ctx.function = exact, net, function
        ctx.ambient = SurroundingPrecision.of(x)
        kept = exact.chunk_size is None and jacobian.entries <= KEPT_ENTRIES
        ctx.jacobian = jacobian if kept else None
        factors = [tensor for each in matrices for tensor in each[2:]]
        ctx.save_for_backward(x, *coefficients, *factors)
        # outputs refer to this node, so the node must not hold an output
        return value.detach(), logdet

    @staticmethod
    def backward(ctx: Any, grad_g: Tensor, grad_logdet: Tensor) -> tuple[Tensor | None, ...]:
        number = len(ctx.needs_input_grad) - 3
        saved = ctx.saved_tensors  # read once: a checkpoint recomputes them at each access
        x, *coefficients = saved[:number]
        with ctx.ambient.in_force():
            if needs_graph(x, grad_g, grad_logdet, *coefficients):
                gradients = _ExactLogDet._by_autograd(ctx, x, coefficients, grad_g, grad_logdet)
            else:
                kept, ctx.jacobian = ctx.jacobian, None
                if kept is None:
                    _, kept = ctx.exact.jacobian(ctx.net, x.detach(), coefficients)
                adjoint = _ExactLogDet._adjoint(ctx, saved[number:], grad_logdet)
                cotangents = grad_g, adjoint.to(grad_g.dtype)
                gradients = kept.pulled(*cotangents, ctx.needs_input_grad[3:])
        tensors = zip(gradients, (x, *coefficients), strict=True)
        cast = (g if g is None else g.to(tensor.dtype) for g, tensor in tensors)
        return None, None, None, *cast

    @staticmethod
    def _adjoint(ctx: Any, factors: Sequence[Tensor], grad_logdet: Tensor) -> Tensor:
        """The gradient with respect to the transposed Jacobian, shape ``(N, D, D)``."""
        pairs = zip(factors[::2], factors[1::2], strict=True)
        terms = zip(ctx.function.terms, pairs, strict=True)
        matrices = [_Factorized(s, t, lu, pivots) for (s, t), (lu, pivots) in terms]
        with full_precision(grad_logdet):
            return _derivative(matrices) * grad_logdet[:, None, None]

    @staticmethod
    def _by_autograd(
        ctx: Any, x: Tensor, coefficients: Sequence[Tensor], grad_g: Tensor, grad_logdet: Tensor
    ) -> Sequence[Tensor | None]:
        """Gradients that can be differentiated again."""

        def outputs(x: Tensor, *coefficients: Tensor) -> tuple[Tensor, Tensor]:
            return ctx.exact.by_autograd(ctx.net, x, coefficients, ctx.function)

        cotangents = (grad_g, grad_logdet)
        return pulled_back(outputs, [x, *coefficients], cotangents, ctx.needs_input_grad[3:])
