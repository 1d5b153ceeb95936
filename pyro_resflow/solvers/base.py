"""What every solver shares: the call, and the gradient by the implicit function theorem."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..linearization import (
    Linearizable,
    WithCoefficients,
    as_linearizable,
    first_derivative_only,
    flatten_batch,
    gradients_where_needed,
    resolve_event_dim,
)
from ..precision import full_precision
from .errors import FixedPointError
from .iteration import FixedPointIteration
from .krylov import solve_shifted
from .tolerance import Iterative, Unsolved


class Solver(Iterative):
    r"""Solve x + g(x) = y for a contraction g.

    Calling it as ``solver(net, y, event_dim=None)`` returns x of the shape of y. With respect to y
    and the parameters of g, :math:`dx = (I + J)^{-1}(dy - \partial_\theta g\, d\theta)`; the
    backward pass solves with :math:`(I+J)^T` in a Krylov space and keeps none of the iterations.

    Args:
        tolerance: largest residual of an entry, relative to the largest entry of y or 1; default
            2e-7 in float32 (and below) and 2e-11 in float64. The error of x is up to 1/(1 - L)
            times as large.
        max_iterations: largest number of network evaluations.
        unsolved: what becomes of samples for which the tolerance is not reached: ``"raise"`` an
            error for the batch, or ``"nan"`` in their place, and in that of samples of y that are
            not finite. No gradient comes from those.

    Raises:
        ValueError: for a tolerance or a number of iterations that is not positive, or another
            ``unsolved``.
        ConvergenceError: when called, if the tolerance is not reached; it says for which samples.
    """

    def __init__(
        self,
        *,
        tolerance: float | None = None,
        max_iterations: int = 1000,
        unsolved: Unsolved = "raise",
    ) -> None:
        super().__init__(tolerance=tolerance, max_iterations=max_iterations, unsolved=unsolved)

    def __call__(
        self, net: nn.Module | Linearizable, y: Tensor, event_dim: int | None = None
    ) -> Tensor:
        flat, _ = flatten_batch(y, resolve_event_dim(net, event_dim))
        network = as_linearizable(net)
        if self.unsolved == "raise" or y.is_meta:
            x = _ImplicitSolve.apply(self, network, flat, *network.coefficients())
            return x.reshape(y.shape)
        finite = flat.flatten(1).isfinite().all(1)
        attempt = _Attempt(self)
        given = torch.where(_beside(finite, flat), flat, 0)
        x = _ImplicitSolve.apply(attempt, network, given, *network.coefficients())
        solved = finite if attempt.failed is None else finite & ~attempt.failed
        return torch.where(_beside(solved, flat), x, torch.nan).reshape(y.shape)

    def solve(self, iteration: FixedPointIteration) -> Tensor:
        """Run the iteration to its end; x of shape ``(N, D)``."""
        raise NotImplementedError


class _Attempt:
    """A solver for one call, which goes on without the samples that it cannot solve."""

    def __init__(self, solver: Solver) -> None:
        self.solver = solver
        self.tolerance_for = solver.tolerance_for
        self.max_iterations = solver.max_iterations
        self.failed: Tensor | None = None

    def solve(self, iteration: FixedPointIteration) -> Tensor:
        """What the solver finds; where it fails, the point of the smallest residual."""
        try:
            return self.solver.solve(iteration)
        except FixedPointError as error:
            self.failed = error.failed
            return torch.where(iteration.settled[:, None], iteration.x, iteration.best_x)


def _beside(samples: Tensor, x: Tensor) -> Tensor:
    """A mask of samples, ``(N,)``, as one that broadcasts with ``(N, *event)``."""
    return samples.reshape(-1, *[1] * (x.dim() - 1))


class _ImplicitSolve(torch.autograd.Function):
    """x with x + g(x) = y; the gradient solves one linear system with the transpose of I + J."""

    @staticmethod
    def forward(
        ctx: Any, solver: Solver | _Attempt, net: Linearizable, y: Tensor, *coefficients: Tensor
    ) -> Tensor:
        tolerance = solver.tolerance_for(y.dtype)
        if not y.is_meta and not bool(y.isfinite().all()):
            raise ValueError("y: expected finite values, got nan or infinity.")
        with full_precision(y):  # a lower one cannot reach the tolerance
            network = WithCoefficients(net, coefficients)
            iteration = FixedPointIteration(network, y, tolerance, solver.max_iterations)
            x = solver.solve(iteration).unflatten(1, y.shape[1:])
        ctx.net, ctx.tolerance, ctx.max_steps = net, tolerance, solver.max_iterations
        ctx.save_for_backward(x, *coefficients)
        return x

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor) -> tuple[Tensor | None, ...]:
        x, *coefficients = ctx.saved_tensors
        x = x.detach()  # as saved it leads back to this very function
        network = WithCoefficients(ctx.net, coefficients).without_history()
        with torch.no_grad(), full_precision(grad_x):
            adjoint = _solve_transposed(network, x, grad_x, ctx.tolerance, ctx.max_steps)
            with torch.enable_grad():
                value = network(x)
            needed = ctx.needs_input_grad[3:]
            gradients = gradients_where_needed([value], [-adjoint], network.coefficients, needed)
        remedy = "the inverse is differentiable once; score data in the direction that is fast."
        return (None, None, *first_derivative_only([adjoint, *gradients], remedy))


def _solve_transposed(
    net: WithCoefficients, x: Tensor, right: Tensor, tolerance: float, max_steps: int
) -> Tensor:
    """u with (I + J_g(x))^T u = ``right``, restarted until the true residual is small enough.

    That is: within tolerance of ``right``, down to the rounding of u, or falling no more. A sample
    whose ``right`` is not finite has nan for u.
    """
    linearization = net.linearize(x)

    def product(v: Tensor) -> Tensor:
        return linearization.vjp(v.unflatten(1, x.shape[1:])[None])[0].flatten(1)

    target = right.flatten(1)
    size = torch.linalg.vector_norm(target, dim=1).clamp_min(torch.finfo(target.dtype).tiny)
    solution = (0 * size)[:, None].expand_as(target)  # nan where there is nothing to solve for
    residual = target
    last = torch.full_like(size, torch.inf)
    rounding = 4 * torch.finfo(target.dtype).eps
    for _ in range(max_steps):
        left = torch.linalg.vector_norm(residual, dim=1) / size
        enough = (rounding * torch.linalg.vector_norm(solution, dim=1) / size).clamp_min(tolerance)
        if not target.is_meta and not bool(((left > enough) & (left < last)).any()):
            break
        last = left
        goal = (tolerance / left.clamp_min(torch.finfo(left.dtype).tiny)).clamp(max=0.5)
        solution = solution + solve_shifted(product, residual, goal, 30)
        residual = target - solution - product(solution)
        if target.is_meta:
            break
    return solution.unflatten(1, x.shape[1:])
