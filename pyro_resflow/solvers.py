r"""Solvers of x + g(x) = y, each with gradients by the implicit function theorem.

All of them measure a sample's error by the residual :math:`r = y - x - g(x)`, relative to
:math:`\max(1, |y|_\infty)`, freeze a sample once its residual is within tolerance, and raise
:class:`ConvergenceError` rather than return a point that is not a solution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .arnoldi import ArnoldiBasis, solve_first
from .linearization import (
    Linearizable,
    as_linearizable,
    call_with_tensors,
    first_derivative_only,
    flatten_batch,
    gradients_where_needed,
    resolve_event_dim,
    without_autocast,
)


class ConvergenceError(ValueError):
    """A solver did not reach its tolerance.

    Attributes:
        iterations: network evaluations spent.
        residual: largest relative residual left.
        contraction: measured contraction factor of g at the last point, the largest over the
            samples; 1 or more means that g is no contraction.
    """

    def __init__(self, iterations: int, residual: float, contraction: float) -> None:
        self.iterations = iterations
        self.residual = residual
        self.contraction = contraction
        super().__init__(
            f"net: no solution of x + g(x) = y after {iterations} evaluations; the largest "
            f"relative residual is {residual:.2e} and the measured contraction factor of g is "
            f"{contraction:.3f}. A factor of 1 or more means that g is not a contraction: build "
            "it from pyro_resflow.nn layers, or lower its coefficient. Below 1, raise "
            "max_iterations or the tolerance."
        )


class Solver:
    r"""Solve x + g(x) = y for a contraction g.

    Calling it as ``solver(net, y, event_dim=None)`` returns x of the shape of y. With respect to y
    and the parameters of g, :math:`dx = (I + J)^{-1}(dy - \partial_\theta g\, d\theta)`; the
    backward pass solves with :math:`(I+J)^T` in a Krylov space and keeps none of the iterations.

    Args:
        tolerance: largest residual of an entry, relative to the largest entry of y or 1; default
            2e-7 in float32 (and below) and 2e-11 in float64. The error of x is up to 1/(1 - L)
            times as large.
        max_iterations: largest number of network evaluations.

    Raises:
        ValueError: for a tolerance or a number of iterations that is not positive.
        ConvergenceError: when called, if the tolerance is not reached.
    """

    def __init__(self, *, tolerance: float | None = None, max_iterations: int = 1000) -> None:
        if tolerance is not None and not tolerance > 0:
            raise ValueError(f"tolerance: expected a positive number, got {tolerance}.")
        if max_iterations < 1:
            raise ValueError(
                f"max_iterations: expected an integer of at least 1, got {max_iterations}."
            )
        self.tolerance = tolerance
        self.max_iterations = max_iterations

    def __call__(
        self, net: nn.Module | Linearizable, y: Tensor, event_dim: int | None = None
    ) -> Tensor:
        flat, _ = flatten_batch(y, resolve_event_dim(net, event_dim))
        network = as_linearizable(net)
        return _ImplicitSolve.apply(self, network, flat, *network.tensors()).reshape(y.shape)

    def tolerance_for(self, dtype: torch.dtype) -> float:
        """The tolerance in force for a floating-point type."""
        if self.tolerance is not None:
            return self.tolerance
        return 2e-11 if dtype == torch.float64 else 2e-7

    def solve(self, iteration: FixedPointIteration) -> Tensor:
        """Run the iteration to its end; x of shape ``(N, D)``."""
        raise NotImplementedError


class FixedPointIteration:
    """The state that every solver advances: the current point and its residual, sample by sample.

    A sample is done when its residual is within the tolerance, or when it has come down to a few
    units of rounding and further steps do not bring it lower: then its best point counts.

    Args:
        net: the contraction g.
        y: shape ``(N, *event)``.
        tolerance: relative tolerance of the residual.
        max_iterations: evaluations after which to give up.
    """

    def __init__(
        self, net: Linearizable, y: Tensor, tolerance: float, max_iterations: int
    ) -> None:
        self.net = net
        self.event_shape = y.shape[1:]
        self.y = y.flatten(1)
        self.scale = self.y.abs().amax(1).clamp_min(1) if y.numel() else self.y.new_zeros(len(y))
        self.tolerance = tolerance
        self.max_iterations = max_iterations
        self.evaluations = 0
        self.rounding = 16 * torch.finfo(y.dtype).eps
        self.x = self.best_x = self.y
        self.residual = self.best_residual = self.evaluate(self.x)
        self.settled = self.error(self.residual) <= tolerance
        self.stalled = torch.zeros_like(self.scale)

    def evaluate(self, x: Tensor) -> Tensor:
        """The residual y - x - g(x), shape ``(N, D)``."""
        self.evaluations += 1
        return self.y - x - self.net(x.unflatten(1, self.event_shape)).flatten(1)

    def error(self, residual: Tensor) -> Tensor:
        """The relative size of the residual, shape ``(N,)``."""
        if not residual.numel():
            return residual.new_zeros(len(residual))
        return residual.abs().amax(1) / self.scale

    def move(self, x: Tensor) -> Tensor:
        """Move the samples that have not settled to x; returns whose residual fell, ``(N,)``."""
        frozen = self.settled[:, None]
        x = torch.where(frozen, self.x, x)
        residual = torch.where(frozen, self.residual, self.evaluate(x))
        last = self.error(self.residual)
        error = self.error(residual).masked_fill(self._swamped(x), torch.inf)
        lower = error < self.error(self.best_residual)
        self.best_x = torch.where(lower[:, None], x, self.best_x)
        self.best_residual = torch.where(lower[:, None], residual, self.best_residual)
        self.stalled = torch.where(lower, 0, self.stalled + 1)
        at_rounding = (self.stalled >= 3) & self._rounded(self.best_x, self.best_residual)
        self.settled = self.settled | at_rounding | (error <= self.tolerance)
        self.x = torch.where(at_rounding[:, None], self.best_x, x)
        self.residual = torch.where(at_rounding[:, None], self.best_residual, residual)
        return error < last

    def _swamped(self, x: Tensor) -> Tensor:
        """Whether x is so large that y is lost in its rounding, and the residual says nothing."""
        if not x.numel():
            return torch.zeros_like(self.settled)
        return torch.finfo(x.dtype).eps * x.abs().amax(1) > 1e-3 * self.scale

    def _rounded(self, x: Tensor, residual: Tensor) -> Tensor:
        """Whether the residual is no more than the rounding of y, x and g(x), shape ``(N,)``."""
        if not residual.numel():
            return torch.ones_like(self.settled)
        # no larger than a contraction's x can be: where there is no solution, x grows forever
        largest = torch.maximum(self.scale, x.abs().amax(1).minimum(100 * self.scale))
        return residual.abs().amax(1) <= self.rounding * largest

    @property
    def done(self) -> bool:
        """Whether all samples have settled; meta tensors are done at once."""
        return self.y.is_meta or bool(self.settled.all())

    @property
    def exhausted(self) -> bool:
        """Whether the evaluations are spent."""
        return self.evaluations >= self.max_iterations

    def failure(self) -> ConvergenceError:
        """The error to raise, with the contraction factor measured by power iteration."""
        lost = ~self.residual.isfinite().all(1) | self._swamped(self.x)
        point = torch.where(lost[:, None], self.best_x, self.x)
        v = torch.where(lost[:, None], self.best_residual, self.residual)
        jvp = self.net.linearize(point.unflatten(1, self.event_shape)).jvp
        factor = torch.zeros_like(self.scale)
        for _ in range(10):
            v = v / v.abs().amax(1, keepdim=True).clamp_min(torch.finfo(v.dtype).tiny)
            v = v / torch.linalg.vector_norm(v, dim=1, keepdim=True).clamp_min(1)
            v = jvp(v.unflatten(1, self.event_shape)[None])[0].flatten(1)
            factor = torch.linalg.vector_norm(v, dim=1)
        left = float(self.error(self.best_residual).max())
        return ConvergenceError(self.evaluations, left, float(factor.max()))


class FixedPoint(Solver):
    r"""Banach's iteration :math:`x \leftarrow y - g(x)`.

    The error falls by the Lipschitz constant L at each step: about
    :math:`\log(\mathrm{tolerance})/\log L` evaluations.
    """

    def solve(self, iteration: FixedPointIteration) -> Tensor:
        while not iteration.done:
            if iteration.exhausted:
                raise iteration.failure()
            iteration.move(iteration.x + iteration.residual)
        return iteration.x


class Anderson(Solver):
    r"""Anderson's acceleration of Banach's iteration, safeguarded by Banach's step: the default.

    The next point is the affine combination of the last ``depth`` + 1 steps whose combined
    residual is least. Where that has not brought a sample's residual down for ``patience`` steps,
    its history is dropped and it takes a Banach step, which always brings it closer.

    Args:
        depth: number of past differences combined.
        patience: steps without progress before a sample's history is dropped.
        tolerance: see :class:`Solver`.
        max_iterations: see :class:`Solver`.

    Reference:
        Walker and Ni, Anderson Acceleration for Fixed-Point Iterations, 2011.
    """

    def __init__(
        self,
        depth: int = 5,
        *,
        patience: int = 3,
        tolerance: float | None = None,
        max_iterations: int = 1000,
    ) -> None:
        super().__init__(tolerance=tolerance, max_iterations=max_iterations)
        if depth < 1 or patience < 1:
            raise ValueError(
                f"depth, patience: expected integers of at least 1, got {depth} and {patience}."
            )
        self.depth = depth
        self.patience = patience

    def solve(self, iteration: FixedPointIteration) -> Tensor:
        steps: list[Tensor] = []
        changes: list[Tensor] = []
        best = iteration.error(iteration.residual)
        stalled = torch.zeros_like(best)
        while not iteration.done:
            if iteration.exhausted:
                raise iteration.failure()
            last_x, last_residual = iteration.x, iteration.residual
            iteration.move(_anderson_point(iteration, steps, changes))
            steps = [*steps, iteration.x - last_x][-self.depth :]
            changes = [*changes, iteration.residual - last_residual][-self.depth :]
            error = iteration.error(iteration.residual)
            improved = error < best
            best = torch.where(improved, error, best)
            stalled = torch.where(improved, 0, stalled + 1)
            reset = (stalled >= self.patience)[:, None]
            steps = [torch.where(reset, 0, s) for s in steps]
            changes = [torch.where(reset, 0, c) for c in changes]
            stalled = torch.where(reset[:, 0], 0, stalled)
            best = torch.where(reset[:, 0], error, best)
        return iteration.x


def _anderson_point(
    iteration: FixedPointIteration, steps: list[Tensor], changes: list[Tensor]
) -> Tensor:
    """The next point; a sample without history (zero differences) takes a Banach step."""
    banach = iteration.x + iteration.residual
    if not steps:
        return banach
    difference = torch.stack(changes, dim=1)
    gram = torch.einsum("nid,njd->nij", difference, difference)
    ridge = gram.diagonal(dim1=1, dim2=2).sum(-1) * 10 * torch.finfo(gram.dtype).eps
    ridge = ridge.clamp_min(torch.finfo(gram.dtype).tiny)
    identity = torch.eye(len(steps), dtype=gram.dtype, device=gram.device)
    right = torch.einsum("nid,nd->ni", difference, iteration.residual)
    gamma = torch.linalg.solve_ex(gram + ridge[:, None, None] * identity, right)[0]
    correction = torch.einsum("nid,ni->nd", torch.stack(steps, dim=1) + difference, gamma)
    return torch.where(correction.isfinite().all(1, keepdim=True), banach - correction, banach)


class NewtonKrylov(Solver):
    r"""Newton's iteration :math:`x \leftarrow x + (I+J)^{-1} r`, its linear systems by Arnoldi.

    Few iterations, each of up to ``krylov_steps`` products with J: the choice when g is strongly
    nonlinear or a linearization is cheap beside an evaluation. A sample whose residual a Newton
    step does not bring down takes a Banach step instead.

    Args:
        krylov_steps: the largest Krylov space of one linear system.
        tolerance: see :class:`Solver`.
        max_iterations: see :class:`Solver`; linearizations and evaluations are counted.

    Reference:
        Knoll and Keyes, Jacobian-free Newton-Krylov methods, 2004.
    """

    def __init__(
        self,
        krylov_steps: int = 20,
        *,
        tolerance: float | None = None,
        max_iterations: int = 1000,
    ) -> None:
        super().__init__(tolerance=tolerance, max_iterations=max_iterations)
        if krylov_steps < 1:
            raise ValueError(
                f"krylov_steps: expected an integer of at least 1, got {krylov_steps}."
            )
        self.krylov_steps = krylov_steps

    def solve(self, iteration: FixedPointIteration) -> Tensor:
        while not iteration.done:
            if iteration.exhausted:
                raise iteration.failure()
            banach = iteration.x + iteration.residual
            improved = iteration.move(iteration.x + self._newton_step(iteration))
            if not bool((improved | iteration.settled).all()):
                iteration.move(torch.where(improved[:, None], iteration.x, banach))
        return iteration.x

    def _newton_step(self, iteration: FixedPointIteration) -> Tensor:
        point = iteration.x.unflatten(1, iteration.event_shape)
        jvp = self._jvp(iteration, point)
        iteration.evaluations += 1
        # a quadratic method needs only a residual that matches its own error
        target = 0.1 * iteration.tolerance / iteration.error(iteration.residual).clamp_min(1e-30)
        goal = torch.maximum(target, torch.full_like(target, 1e-3)).clamp(max=0.1)
        return solve_shifted(jvp, iteration.residual, goal, self.krylov_steps)

    def _jvp(self, iteration: FixedPointIteration, point: Tensor) -> Callable[[Tensor], Tensor]:
        linearization = iteration.net.linearize(point)

        def product(v: Tensor) -> Tensor:
            return linearization.jvp(v.unflatten(1, iteration.event_shape)[None])[0].flatten(1)

        return product


def solve_shifted(
    product: Callable[[Tensor], Tensor], right: Tensor, goal: Tensor | float, max_steps: int
) -> Tensor:
    r"""Solve (I + A) u = b per sample in the Krylov space of A and b (full orthogonalization).

    Args:
        product: A v, on ``(N, D)``.
        right: b, shape ``(N, D)``.
        goal: relative residual to reach, a number or shape ``(N,)``.
        max_steps: size of the largest Krylov space; a later restart is the caller's.

    Returns:
        u, shape ``(N, D)``.
    """
    basis = ArnoldiBasis(right)
    coefficients = torch.zeros_like(right[:, :1])
    for _ in range(max_steps):
        basis.extend(product(basis.last.to(right.dtype)))
        coefficients = solve_first(basis.hessenberg())
        left = basis.columns[-1][:, -1] * coefficients[:, -1].abs()
        if right.is_meta or bool((left <= goal).all()):
            break
    return basis.combine(coefficients).to(right.dtype)


class _ImplicitSolve(torch.autograd.Function):
    """x with x + g(x) = y; the gradient solves one linear system with the transpose of I + J."""

    @staticmethod
    def forward(
        ctx: Any, solver: Solver, net: Linearizable, y: Tensor, *tensors: Tensor
    ) -> Tensor:
        tolerance = solver.tolerance_for(y.dtype)
        if not y.is_meta and not bool(y.isfinite().all()):
            raise ValueError("y: expected finite values, got nan or infinity.")
        with without_autocast(y):  # half precision cannot reach the tolerance
            iteration = FixedPointIteration(net, y, tolerance, solver.max_iterations)
            x = solver.solve(iteration).unflatten(1, y.shape[1:])
        ctx.net, ctx.tolerance, ctx.max_steps = net, tolerance, solver.max_iterations
        ctx.save_for_backward(x, *tensors)
        return x

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor) -> tuple[Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors
        x = x.detach()  # as saved it leads back to this very function
        with torch.no_grad():
            adjoint = call_with_tensors(
                ctx.net,
                tensors,
                lambda x, grad_x: _solve_transposed(
                    ctx.net, x, grad_x, ctx.tolerance, ctx.max_steps
                ),
                x,
                grad_x,
            )
            with torch.enable_grad():
                value = call_with_tensors(ctx.net, tensors, ctx.net.__call__, x)
            needed = ctx.needs_input_grad[3:]
            gradients = gradients_where_needed([value], [-adjoint], tensors, needed)
        remedy = "the inverse is differentiable once; score data in the direction that is fast."
        return (None, None, *first_derivative_only([adjoint, *gradients], remedy))


def _solve_transposed(
    net: Linearizable, x: Tensor, right: Tensor, tolerance: float, max_steps: int
) -> Tensor:
    """u with (I + J_g(x))^T u = ``right``, restarted until the true residual is small enough.

    That is: within tolerance of ``right``, down to the rounding of u, or falling no more.
    """
    linearization = net.linearize(x)

    def product(v: Tensor) -> Tensor:
        return linearization.vjp(v.unflatten(1, x.shape[1:])[None])[0].flatten(1)

    target = right.flatten(1)
    size = torch.linalg.vector_norm(target, dim=1).clamp_min(torch.finfo(target.dtype).tiny)
    solution = torch.zeros_like(target)
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
