"""Anderson's acceleration of Banach's iteration."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Solver
from .iteration import FixedPointIteration


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
