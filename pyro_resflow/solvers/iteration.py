"""The state of a fixed-point iteration, which every solver advances."""

from __future__ import annotations

import torch
from torch import Tensor

from ..linearization import WithCoefficients
from .convergence import FixedPointError

ROUNDING = 16
"""Units of rounding up to which a residual y - x - g(x) may be rounding alone: y, x and their
differences round by about one each, and g, a sum over the width of each layer, by several."""

STALLED_STEPS = 3
"""Steps without a smaller residual after which a residual of rounding alone is accepted; a single
step may increase it by chance."""

LOST_SHARE = 1e-3
"""Largest rounding of x, as a share of y. With more, y is lost in it."""

LARGEST_SOLUTION = 100
"""Ratio of x to y up to which a larger x permits a larger residual. A solution is at most
(|y| + |g(0)|)/(1 - L); without one, x grows without bound."""

POWER_STEPS = 10
"""Steps of the power iteration that measures the contraction factor. A rough measure is enough for
the error message and for the decision whether Newton's iteration may help."""


class FixedPointIteration:
    """The state that every solver advances: the current point and residual of each sample.

    A sample is done when its residual is within the tolerance, or when the residual is a few units
    of rounding and further steps do not reduce it. Its best point is then the result.

    Attributes:
        x: the current points, shape ``(N, D)``.
        residual: y - x - g(x) there, shape ``(N, D)``.
        best_x: the point of each sample's smallest residual, shape ``(N, D)``.
        best_residual: the residual there, shape ``(N, D)``.
        settled: mask of the samples that are done, shape ``(N,)``; they move no more.
        evaluations: number of evaluations of g so far.

    Args:
        net: the contraction g, with its coefficients.
        y: shape ``(N, *event)``.
        tolerance: relative tolerance of the residual.
        max_iterations: number of evaluations after which to give up.
    """

    def __init__(
        self, net: WithCoefficients, y: Tensor, tolerance: float, max_iterations: int
    ) -> None:
        self.net = net
        self.event_shape = y.shape[1:]
        self.y = y.flatten(1)
        self.scale = self.y.abs().amax(1).clamp_min(1) if y.numel() else self.y.new_zeros(len(y))
        self.tolerance = tolerance
        self.max_iterations = max_iterations
        self.evaluations = 0
        self.rounding = ROUNDING * torch.finfo(y.dtype).eps
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
        """Move the samples that have not settled to x; return whose residual fell, ``(N,)``."""
        frozen = self.settled[:, None]
        x = torch.where(frozen, self.x, x)
        residual = torch.where(frozen, self.residual, self.evaluate(x))
        last = self.error(self.residual)
        error = self.error(residual).masked_fill(self._swamped(x), torch.inf)
        lower = error < self.error(self.best_residual)
        self.best_x = torch.where(lower[:, None], x, self.best_x)
        self.best_residual = torch.where(lower[:, None], residual, self.best_residual)
        self.stalled = torch.where(lower, 0, self.stalled + 1)
        is_stalled = self.stalled >= STALLED_STEPS
        at_rounding = is_stalled & self._rounded(self.best_x, self.best_residual)
        self.settled = self.settled | at_rounding | (error <= self.tolerance)
        self.x = torch.where(at_rounding[:, None], self.best_x, x)
        self.residual = torch.where(at_rounding[:, None], self.best_residual, residual)
        return error < last

    def return_to_best(self, samples: Tensor) -> None:
        """Move samples, a mask of shape ``(N,)``, back to where their residual was smallest."""
        samples = samples[:, None]
        self.x = torch.where(samples, self.best_x, self.x)
        self.residual = torch.where(samples, self.best_residual, self.residual)

    def _swamped(self, x: Tensor) -> Tensor:
        """Whether x is so large that y is lost in its rounding, shape ``(N,)``."""
        if not x.numel():
            return torch.zeros_like(self.settled)
        return torch.finfo(x.dtype).eps * x.abs().amax(1) > LOST_SHARE * self.scale

    def _rounded(self, x: Tensor, residual: Tensor) -> Tensor:
        """Whether the residual is at most the rounding of y, x and g(x), shape ``(N,)``."""
        if not residual.numel():
            return torch.ones_like(self.settled)
        size = x.abs().amax(1).minimum(LARGEST_SOLUTION * self.scale)
        largest = torch.maximum(self.scale, size)
        return residual.abs().amax(1) <= self.rounding * largest

    @property
    def done(self) -> bool:
        """Whether all samples have settled; meta tensors are done at once."""
        return self.y.is_meta or bool(self.settled.all())

    @property
    def exhausted(self) -> bool:
        """Whether the evaluations are spent."""
        return self.evaluations >= self.max_iterations

    def failure(self) -> FixedPointError:
        """The error to raise, with the contraction factor measured by power iteration."""
        lost = ~self.residual.isfinite().all(1) | self._swamped(self.x)
        point = torch.where(lost[:, None], self.best_x, self.x)
        v = torch.where(lost[:, None], self.best_residual, self.residual)
        jvp = self.net.linearize(point.unflatten(1, self.event_shape)).jvp
        factor = torch.zeros_like(self.scale)
        for _ in range(POWER_STEPS):
            v = v / v.abs().amax(1, keepdim=True).clamp_min(torch.finfo(v.dtype).tiny)
            v = v / torch.linalg.vector_norm(v, dim=1, keepdim=True).clamp_min(1)
            v = jvp(v.unflatten(1, self.event_shape)[None])[0].flatten(1)
            factor = torch.linalg.vector_norm(v, dim=1)
        left = float(self.error(self.best_residual).max())
        return FixedPointError(self.evaluations, left, float(factor.max()), ~self.settled)
