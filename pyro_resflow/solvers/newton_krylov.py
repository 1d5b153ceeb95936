"""Newton's iteration."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .iteration import FixedPointIteration
from .krylov import solve_shifted
from .solver import FixedPointSolver
from .tolerance import Unsolved

LOOSEST_GOAL = 0.1
"""Largest relative residual of a linear system: a step that leaves a tenth is worth its cost."""

TIGHTEST_GOAL = 1e-3
"""Smallest relative residual of a linear system. The error after a Newton step is of the order of
the square of the error before it, and further digits of the step would be wasted."""

BELOW_TOLERANCE = 0.1
"""Share of the tolerance that the last linear system aims at, because its residual and the step's
own error add up."""

NO_RESIDUAL = 1e-30
"""Smallest residual to divide by, in place of 0."""


class NewtonKrylov(FixedPointSolver):
    r"""Newton's iteration :math:`x \leftarrow x + (I+J)^{-1} r`, its linear systems by Arnoldi.

    It takes few iterations, each of up to ``krylov_steps`` products with J. Use it when g is
    strongly nonlinear, or when a linearization is cheap compared with an evaluation. If a Newton
    step does not reduce a sample's residual, the sample takes a Banach step instead.

    Args:
        krylov_steps: the largest Krylov space of one linear system.
        tolerance: see :class:`FixedPointSolver`.
        max_iterations: see :class:`FixedPointSolver`; linearizations and evaluations are counted.
        unsolved: see :class:`FixedPointSolver`.

    Reference:
        Knoll and Keyes, Jacobian-free Newton-Krylov methods, 2004.
    """

    def __init__(
        self,
        krylov_steps: int = 20,
        *,
        tolerance: float | None = None,
        max_iterations: int = 1000,
        unsolved: Unsolved = "raise",
    ) -> None:
        super().__init__(tolerance=tolerance, max_iterations=max_iterations, unsolved=unsolved)
        if krylov_steps < 1:
            raise ValueError(
                f"krylov_steps: expected an integer of at least 1, got {krylov_steps}."
            )
        self.krylov_steps = krylov_steps

    def solve(self, iteration: FixedPointIteration) -> Tensor:
        """Run the iteration to its end, from its current point; x of shape ``(N, D)``."""
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
        # a method of quadratic convergence needs only a residual that matches its own error
        left = iteration.error(iteration.residual).clamp_min(NO_RESIDUAL)
        goal = (BELOW_TOLERANCE * iteration.tolerance / left).clamp(TIGHTEST_GOAL, LOOSEST_GOAL)
        return solve_shifted(jvp, iteration.residual, goal, self.krylov_steps)

    def _jvp(self, iteration: FixedPointIteration, point: Tensor) -> Callable[[Tensor], Tensor]:
        linearization = iteration.net.linearize(point)

        def product(v: Tensor) -> Tensor:
            return linearization.jvp(v.unflatten(1, iteration.event_shape)[None])[0].flatten(1)

        return product
