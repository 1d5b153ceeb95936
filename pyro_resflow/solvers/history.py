"""The history of Anderson's acceleration: the last differences of each sample."""

from __future__ import annotations

import torch
from torch import Tensor

RIDGE = 10
"""Added to the diagonal of the Gram matrix of the differences, in units of rounding of its trace:
enough to keep it invertible when the differences are dependent."""


class History:
    """The last differences of Banach's points and of residuals, and their best combination.

    Samples are the last dimension of all tensors here. The sums over a few differences or entries
    then run over whole rows of samples, which takes a fraction of the time of one small matrix
    product or solve per sample.

    Args:
        depth: number of differences; at most the number of entries of a sample are used, because
            more are dependent.
        x: the current points, shape ``(N, D)``.
        residual: their residuals, shape ``(N, D)``.
    """

    def __init__(self, depth: int, x: Tensor, residual: Tensor) -> None:
        number, entries = x.shape
        self.depth = max(1, min(depth, entries))
        self.points = x.new_zeros(self.depth, entries, number)  # differences of Banach's points
        self.residuals = torch.zeros_like(self.points)
        self.gram = x.new_zeros(self.depth, self.depth, number)  # of the differences of residuals
        self.recorded = 0
        self.restart(x, residual)

    def restart(self, x: Tensor, residual: Tensor) -> None:
        """Take these points as the current ones, without a difference."""
        self.point = (x + residual).t().contiguous()
        self.residual = residual.t().contiguous()

    def record(self, x: Tensor, residual: Tensor) -> None:
        """Take these points as the current ones, and record the differences from the last."""
        point, of_residual = self.point, self.residual
        self.restart(x, residual)
        slot = self.recorded % self.depth
        self.recorded += 1
        torch.sub(self.point, point, out=self.points[slot])
        torch.sub(self.residual, of_residual, out=self.residuals[slot])
        size = min(self.recorded, self.depth)
        row = (self.residuals[:size] * self.residuals[slot]).sum(1)
        self.gram[slot, :size] = row
        self.gram[:size, slot] = row

    def forget(self, samples: Tensor) -> None:
        """Set the differences of samples, a mask of shape ``(N,)``, to zero."""
        for each in (self.points, self.residuals, self.gram):
            each.masked_fill_(samples, 0)

    def next_point(self) -> Tensor:
        """The next point, shape ``(N, D)``: Banach's for a sample without differences.

        It is Banach's point minus the combination of its differences whose coefficients minimize
        the residual minus the same combination of its differences.
        """
        size = min(self.recorded, self.depth)
        if not size:
            return self.point.t().contiguous()
        right = (self.residuals[:size] * self.residual).sum(1)
        gamma = _solved(self.gram[:size, :size], right)
        correction = (self.points[:size] * gamma[:, None]).sum(0)
        is_finite = correction.abs().amax(0) < torch.inf
        return torch.where(is_finite, self.point - correction, self.point).t().contiguous()


def _solved(gram: Tensor, right: Tensor) -> Tensor:
    """Solve the normal equations, ``(m, m, N)`` and ``(m, N)``, by Gauss-Jordan elimination.

    A positive definite matrix needs no pivoting.
    """
    rounding = torch.finfo(gram.dtype)
    ridge = gram.diagonal().sum(-1).mul_(RIDGE * rounding.eps).clamp_min_(rounding.tiny)
    if len(gram) == 1:
        return right / (gram[0] + ridge)
    system = torch.cat([gram, right[:, None]], dim=1)
    system.diagonal().add_(ridge[:, None])
    for k, row in enumerate(system):
        scaled = row / row[k]
        system.addcmul_(system.narrow(1, k, 1).clone(), scaled, value=-1)
        row.copy_(scaled)
    return system[:, -1]
