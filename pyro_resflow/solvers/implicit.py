r"""Derivatives of solutions by the implicit function theorem, of all orders and in both modes.

The solution x of x + g(x) = y has :math:`dx = (I + J)^{-1}(dy - \partial_\theta g\,d\theta)`. The
solutions of the linear systems in that formula are functions of x and the coefficients too. Their
derivatives follow from further systems of the same kind: for :math:`M u = b`,
:math:`du = M^{-1}(db - dM\,u)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from ..differentiation import (
    forward_rule,
    gradients_where_needed,
    is_only_evaluated,
    needs_graph,
    only,
    pulled_back,
    pushed_forward,
    with_signature,
)
from ..linearization import Linearizable, WithCoefficients
from ..precision import full_precision
from ..vmapped import VmappedNetwork, folded
from .convergence import check_finite
from .iteration import FixedPointIteration
from .krylov import solve_shifted

RESTART = 30
"""Products with J before a linear solve restarts from its residual. This limits the memory to 31
vectors of the size of x, and the cost of orthogonalization, which grows with the square."""

LOOSEST_GOAL = 0.5
"""Largest relative residual that a restart aims at: it halves the residual or does better."""

SOLUTION_ROUNDING = 4
"""Units of rounding of u below which the residual b - (I + J) u cannot fall: u, J u, b and their
difference round by about one each."""


class Iterating(Protocol):
    """The interface of solvers in this module."""

    max_iterations: int

    def tolerance_for(self, dtype: torch.dtype) -> float:
        """The tolerance in force for a floating-point type."""

    def solve(self, iteration: FixedPointIteration) -> Tensor:
        """Run the iteration to its end; x of shape ``(N, D)``."""


def implicit_solution(solver: Iterating, net: Linearizable, y: Tensor) -> Tensor:
    """x with x + g(x) = y, differentiable in y and the coefficients of g.

    Args:
        solver: the solver that finds x.
        net: g.
        y: shape ``(N, *event)``.

    Raises:
        ValueError: if y is not finite.
    """
    coefficients = net.coefficients()
    solve = _ImplicitSolve.forward if is_only_evaluated(y, *coefficients) else _ImplicitSolve.apply
    x: Tensor = solve(solver, net, y, *coefficients)
    return x


class _ImplicitSolve(torch.autograd.Function):
    """x with x + g(x) = y; the gradient solves one linear system with the transpose of I + J."""

    @staticmethod
    @with_signature
    def forward(solver: Iterating, net: Linearizable, y: Tensor, *coefficients: Tensor) -> Tensor:
        tolerance = solver.tolerance_for(y.dtype)
        check_finite(y, "samples")
        with full_precision(y):  # lower precision cannot reach the tolerance
            network = WithCoefficients(net, coefficients)
            iteration = FixedPointIteration(network, y, tolerance, solver.max_iterations)
            return solver.solve(iteration).unflatten(1, y.shape[1:])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        solver, net, y, *coefficients = inputs
        ctx.system = _System(net, True, solver.tolerance_for(y.dtype), solver.max_iterations)
        ctx.save_for_backward(output, *coefficients)
        ctx.save_for_forward(output, *coefficients)

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor) -> tuple[Tensor | None, ...]:
        x, *coefficients = ctx.saved_tensors
        needed = ctx.needs_input_grad[3:]
        with full_precision(grad_x):
            if not needs_graph(x, grad_x, *coefficients):
                return None, None, *_first_gradients(ctx.system, x, grad_x, coefficients, needed)
            adjoint = ctx.system.solved(x, grad_x, coefficients)
            at_x = partial(_evaluate_at, ctx.system.net, x)
            gradients = pulled_back(at_x, coefficients, -adjoint, needed)
        return None, None, adjoint, *gradients

    @staticmethod
    @forward_rule
    def jvp(
        ctx: Any, saved: Sequence[Tensor], solver: None, net: None, *tangents: Tensor | None
    ) -> Tensor:
        x, *coefficients = saved
        dy, *along = tangents
        with full_precision(x):
            at_x = partial(_evaluate_at, ctx.system.net, x)
            change = -pushed_forward(at_x, coefficients, along, x)
            right = change if dy is None else dy + change
            return ctx.system.transposed().solved(x, right, coefficients)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        solver: Iterating,
        net: Linearizable,
        y: Tensor,
        *coefficients: Tensor,
    ) -> tuple[Tensor, int]:
        mapped = VmappedNetwork(net, info.batch_size, in_dims[3:])
        flat = folded(y, in_dims[2], info.batch_size)
        x = _ImplicitSolve.apply(solver, mapped, flat, *coefficients)
        return x.unflatten(0, mapped.split(flat)), 0


def _first_gradients(
    system: _System,
    x: Tensor,
    grad_x: Tensor,
    coefficients: Sequence[Tensor],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients for y and the coefficients, in as few operations as possible."""
    x = x.detach()  # the saved x has this node in its graph
    network = WithCoefficients(system.net, coefficients).without_history()
    adjoint = system.solution(x, grad_x, network.coefficients)
    with torch.enable_grad():
        value = network(x)
    return [
        adjoint,
        *gradients_where_needed([value], [-adjoint], network.coefficients, needed),
    ]


@dataclass(frozen=True)
class _System:
    r"""The linear system :math:`(I + J)\,u = b` or the transposed one, and its accuracy.

    Args:
        net: the network with the Jacobian J.
        is_transposed: whether its matrix is :math:`(I + J)^T`.
        tolerance: relative residual to reach.
        max_steps: largest number of restarts.
    """

    net: Linearizable
    is_transposed: bool
    tolerance: float
    max_steps: int

    def transposed(self) -> _System:
        """The system of the transposed matrix."""
        return replace(self, is_transposed=not self.is_transposed)

    def of(self, net: Linearizable) -> _System:
        """The system of another network."""
        return replace(self, net=net)

    def solved(self, x: Tensor, right: Tensor, coefficients: Sequence[Tensor]) -> Tensor:
        """u, differentiable in the point x, in b and in the coefficients."""
        u: Tensor = _LinearSolve.apply(self, x, right, *coefficients)
        return u

    def solution(self, x: Tensor, right: Tensor, coefficients: Sequence[Tensor]) -> Tensor:
        """Solve for u, with restarts until the true residual is small enough.

        The residual is small enough once it is within the tolerance relative to b, or at the
        rounding of u, or no longer decreases. A sample whose b is not finite gets nan.
        """
        linearization = self.net.linearize(x, coefficients)
        times = linearization.vjp if self.is_transposed else linearization.jvp

        def product(v: Tensor) -> Tensor:
            return times(v.unflatten(1, x.shape[1:])[None])[0].flatten(1)

        target = right.flatten(1)
        tiny = torch.finfo(target.dtype).tiny
        size = torch.linalg.vector_norm(target, dim=1).clamp_min(tiny)
        solution = (0 * size)[:, None].expand_as(target)  # nan if b is not finite
        residual = target
        last = torch.full_like(size, torch.inf)
        rounding = SOLUTION_ROUNDING * torch.finfo(target.dtype).eps
        for _ in range(self.max_steps):
            left = torch.linalg.vector_norm(residual, dim=1) / size
            reached = rounding * torch.linalg.vector_norm(solution, dim=1) / size
            enough = reached.clamp_min(self.tolerance)
            if not target.is_meta and not bool(((left > enough) & (left < last)).any()):
                break
            last = left
            goal = (self.tolerance / left.clamp_min(tiny)).clamp(max=LOOSEST_GOAL)
            solution = solution + solve_shifted(product, residual, goal, RESTART)
            residual = target - solution - product(solution)
            if target.is_meta:
                break
        return solution.unflatten(1, x.shape[1:])

    def product(self, u: Tensor, x: Tensor, *coefficients: Tensor) -> Tensor:
        """J u or :math:`J^T u`, differentiable in the point and the coefficients."""
        if self.is_transposed:
            return only(pulled_back(lambda p: self.net.evaluate(p, coefficients), [x], u))
        return pushed_forward(lambda p: self.net.evaluate(p, coefficients), [x], [u], x)


class _LinearSolve(torch.autograd.Function):
    """u with M u = b, where M is the matrix of a :class:`_System` at a point."""

    @staticmethod
    @with_signature
    def forward(system: _System, x: Tensor, right: Tensor, *coefficients: Tensor) -> Tensor:
        with full_precision(right):
            return system.solution(x.detach(), right, coefficients)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.system, x, _, *coefficients = inputs
        ctx.save_for_backward(x, output, *coefficients)
        ctx.save_for_forward(x, output, *coefficients)

    @staticmethod
    def backward(ctx: Any, grad_u: Tensor) -> tuple[Tensor | None, ...]:
        x, u, *coefficients = ctx.saved_tensors
        system, (_, needs_x, _, *needed) = ctx.system, ctx.needs_input_grad
        with full_precision(grad_u):
            adjoint = system.transposed().solved(x, grad_u, coefficients)
            # the gradient of -(adjoint^T M u) at fixed adjoint and u, by J^T times one of these
            left, right = (u, adjoint) if system.is_transposed else (adjoint, u)
            product = partial(replace(system, is_transposed=True).product, left)
            point, wanted = [x, *coefficients], [needs_x, *needed]
            by_x, *gradients = pulled_back(product, point, -right, wanted)
        return None, by_x, adjoint, *gradients

    @staticmethod
    @forward_rule
    def jvp(ctx: Any, saved: Sequence[Tensor], system: None, *tangents: Tensor | None) -> Tensor:
        x, u, *coefficients = saved
        dx, db, *along = tangents
        with full_precision(u):
            product = partial(ctx.system.product, u)
            change = -pushed_forward(product, [x, *coefficients], [dx, *along], u)
            right = change if db is None else db + change
            return ctx.system.solved(x, right, coefficients)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        system: _System,
        x: Tensor,
        right: Tensor,
        *coefficients: Tensor,
    ) -> tuple[Tensor, int]:
        mapped = VmappedNetwork(system.net, info.batch_size, in_dims[3:])
        flat, target = (
            folded(tensor, dim, info.batch_size)
            for tensor, dim in ((x, in_dims[1]), (right, in_dims[2]))
        )
        u = _LinearSolve.apply(system.of(mapped), flat, target, *coefficients)
        return u.unflatten(0, mapped.split(flat)), 0


def _evaluate_at(net: Linearizable, x: Tensor, *coefficients: Tensor) -> Tensor:
    return net.evaluate(x, coefficients)
