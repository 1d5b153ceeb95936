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
        is_falling: whether each residual has been the smallest of its sample so far, at each step
            until the sample settled. Known on the host.
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
        self.scale = _largest(self.y).clamp_min(1)
        self.tolerance = tolerance
        self.limit = tolerance * self.scale
        self.max_iterations = max_iterations
        self.evaluations = 0
        self.rounding = ROUNDING * torch.finfo(y.dtype).eps
        self.x = self.best_x = self.y
        self.residual = self.best_residual = self.evaluate(self.x)
        self.size = self.best_size = _largest(self.residual)
        self.settled = self.size <= self.limit
        self.is_falling = not y.is_meta
        self.stalled = torch.zeros_like(self.scale)
        self._known: tuple[bool, bool] | None = None

    def evaluate(self, x: Tensor) -> Tensor:
        """The residual y - x - g(x), shape ``(N, D)``."""
        self.evaluations += 1
        if len(self.event_shape) == 1:
            return self.y - x - self.net(x)
        return self.y - x - self.net(x.unflatten(1, self.event_shape)).flatten(1)

    def error(self, residual: Tensor) -> Tensor:
        """The relative size of the residual, shape ``(N,)``."""
        return _largest(residual) / self.scale

    def move(self, x: Tensor) -> Tensor:
        """Move the samples that have not settled to x; return whose residual fell, ``(N,)``."""
        if self._has_settled():
            frozen = self.settled[:, None]
            x = torch.where(frozen, self.x, x)
            residual = torch.where(frozen, self.residual, self.evaluate(x))
        else:
            residual = self.evaluate(x)
        size = _largest(residual)
        lower = size < self.best_size
        if self.is_falling and self._falls(x, lower, size <= self.limit):
            self.x = self.best_x = x
            self.residual = self.best_residual = residual
            self.size = self.best_size = size
            return lower
        return self._move_by_sample(x, residual, size)

    def _has_settled(self) -> bool:
        """Whether some samples may have settled; known on the host where residuals fall."""
        if self._known is None and not self.y.is_meta:
            self._known = bool(self.settled.all()), bool(self.settled.any())
        return self._known is None or self._known[1]

    def _falls(self, x: Tensor, lower: Tensor, within: Tensor) -> bool:
        """Whether the best point of each sample is now x; if so, settle those within tolerance.

        This is the usual case, and takes few operations and one wait for the device.
        """
        settled = self.settled | within
        is_lower = (lower | self.settled).all()
        is_small = x.abs().amax() <= LOST_SHARE / torch.finfo(x.dtype).eps
        flags = torch.stack([is_lower, is_small, settled.all(), settled.any()])
        falls, small, all_settled, any_settled = flags.tolist()
        self.is_falling = falls and small
        if self.is_falling:
            self.settled = settled
            self._known = all_settled, any_settled
        return self.is_falling

    def _move_by_sample(self, x: Tensor, residual: Tensor, size: Tensor) -> Tensor:
        """Move where some residuals have not fallen, with a count of each sample's stalled steps.

        Args:
            x: the points, with those of settled samples.
            residual: the residual there.
            size: the largest entry of the residual, shape ``(N,)``.
        """
        size = size.masked_fill(self._swamped(x), torch.inf)
        fell = size < self.size
        lower = size < self.best_size
        self.best_x = torch.where(lower[:, None], x, self.best_x)
        self.best_residual = torch.where(lower[:, None], residual, self.best_residual)
        self.best_size = torch.where(lower, size, self.best_size)
        self.stalled = torch.where(lower, 0, self.stalled + 1)
        is_stalled = self.stalled >= STALLED_STEPS
        at_rounding = is_stalled & self._rounded(self.best_x, self.best_size)
        self.settled = self.settled | at_rounding | (size <= self.limit)
        self.x = torch.where(at_rounding[:, None], self.best_x, x)
        self.residual = torch.where(at_rounding[:, None], self.best_residual, residual)
        self.size = torch.where(at_rounding, self.best_size, size)
        self._known = None
        return fell

    def return_to_best(self, samples: Tensor) -> None:
        """Move samples, a mask of shape ``(N,)``, back to where their residual was smallest."""
        self.size = torch.where(samples, self.best_size, self.size)
        samples = samples[:, None]
        self.x = torch.where(samples, self.best_x, self.x)
        self.residual = torch.where(samples, self.best_residual, self.residual)

    def _swamped(self, x: Tensor) -> Tensor:
        """Whether x is so large that y is lost in its rounding, shape ``(N,)``."""
        return torch.finfo(x.dtype).eps * _largest(x) > LOST_SHARE * self.scale

    def _rounded(self, x: Tensor, size: Tensor) -> Tensor:
        """Whether a residual of a size is at most the rounding of y, x and g(x), ``(N,)``."""
        largest = torch.maximum(self.scale, _largest(x).minimum(LARGEST_SOLUTION * self.scale))
        return size <= self.rounding * largest

    @property
    def done(self) -> bool:
        """Whether all samples have settled; meta tensors are done at once."""
        if self.y.is_meta:
            return True
        self._has_settled()
        return self._known is None or self._known[0]

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


def _largest(entries: Tensor) -> Tensor:
    """The largest absolute value of each row, shape ``(N,)``; 0 of an empty one."""
    return entries.abs().amax(1) if entries.numel() else entries.new_zeros(len(entries))
