"""Anderson's acceleration of Banach's iteration."""

from __future__ import annotations

import torch
from torch import Tensor

from .history import History
from .iteration import FixedPointIteration
from .newton_krylov import NewtonKrylov
from .solver import FixedPointSolver
from .tolerance import Unsolved

NEWTON_SHARE = 0.1
"""Share of ``max_iterations`` that Newton's iteration may spend at the end: its steps are few and
expensive, because each may take ``NEWTON_PRODUCTS`` products."""

NEWTON_PRODUCTS = 100
"""Size of Newton's Krylov spaces; large, because the remaining systems are nearly singular."""

CONTRACTION_ROUNDING = 8
"""A contraction factor of 1 may be measured this many units of rounding below 1. A product, its
length and the normalization before it each round by about one unit."""


class Anderson(FixedPointSolver):
    r"""Anderson's acceleration of Banach's iteration, safeguarded by Banach's step: the default.

    The next point is the affine combination of the last ``depth`` + 1 steps with the smallest
    combined residual. The textbook method does no more than this, and need not converge for a
    nonlinear g. This one is safeguarded: if a sample's residual has not decreased for ``patience``
    steps, the sample returns to its best point and takes Banach's steps, which converge for every
    contraction: ``patience`` of them at first, and twice as many each further time. If the
    Lipschitz constant of g is so close to 1 that ``max_iterations`` are not enough (a rotation of
    Lipschitz constant .999), :class:`NewtonKrylov` continues for a tenth as many evaluations.

    Args:
        depth: number of past differences combined.
        patience: steps without progress before a sample returns to its best point.
        tolerance: see :class:`FixedPointSolver`.
        max_iterations: see :class:`FixedPointSolver`.
        unsolved: see :class:`FixedPointSolver`.

    Reference:
        Walker and Ni, Anderson Acceleration for Fixed-Point Iterations, 2011.
    """

    def __init__(
        self,
        depth: int = 5,
        *,
        patience: int = 5,
        tolerance: float | None = None,
        max_iterations: int = 1000,
        unsolved: Unsolved = "raise",
    ) -> None:
        super().__init__(tolerance=tolerance, max_iterations=max_iterations, unsolved=unsolved)
        if depth < 1 or patience < 1:
            raise ValueError(
                f"depth, patience: expected integers of at least 1, got {depth} and {patience}."
            )
        self.depth = depth
        self.patience = patience

    def solve(self, iteration: FixedPointIteration) -> Tensor:
        if iteration.done:
            return iteration.x
        history = History(self.depth, iteration.x, iteration.residual)
        stalled = torch.zeros_like(iteration.scale)
        plain = torch.zeros_like(iteration.scale)  # Banach steps that a sample still has to take
        relapse = torch.full_like(iteration.scale, self.patience)
        while not iteration.done:
            if iteration.exhausted:
                return self._by_newton(iteration)
            # 1. step to the combination, and keep the changes as history
            best = iteration.best_size
            iteration.move(history.next_point())
            history.record(iteration.x, iteration.residual)
            if iteration.is_falling:
                continue
            # 2. count each sample's steps without progress; Banach steps may make none at first
            plain = (plain - 1).clamp_min(0)
            improved = iteration.best_size < best
            stalled = torch.where(improved | (plain > 0), 0, stalled + 1)
            # 3. return samples out of patience, for twice as many Banach steps each time
            reset = stalled >= self.patience
            iteration.return_to_best(reset)
            plain, relapse = torch.where(reset, relapse, plain), relapse * (1 + reset.to(plain))
            stalled = torch.where(reset, 0, stalled)
            # 4. clear their history, so that the next point is Banach's
            history.restart(iteration.x, iteration.residual)
            history.forget(plain > 0)
        return iteration.x

    def _by_newton(self, iteration: FixedPointIteration) -> Tensor:
        """Continue with Newton's steps from the best points, if g looks like a contraction."""
        failure = iteration.failure()
        extra = round(NEWTON_SHARE * self.max_iterations)
        limit = 1 - CONTRACTION_ROUNDING * torch.finfo(iteration.y.dtype).eps
        if not (failure.contraction < limit and extra):
            raise failure
        iteration.return_to_best(torch.ones_like(iteration.settled))
        iteration.max_iterations += extra
        return NewtonKrylov(NEWTON_PRODUCTS, max_iterations=extra).solve(iteration)
