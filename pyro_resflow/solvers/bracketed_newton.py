"""Roots of increasing functions of one variable, many at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..linearization import first_derivative_only
from .errors import ConvergenceError
from .tolerance import Iterative

Increasing = Callable[[Tensor], tuple[Tensor, Tensor]]


class BracketedNewton(Iterative):
    r"""Solve f(x) = y entry by entry, where f increases: Newton's method inside a bracket.

    A step of Newton's that leaves the bracket, or is not half as long as the last, is replaced by
    bisection, so that the number of evaluations is about :math:`2\log_2` of the bracket's width
    over the tolerance at worst, and a handful as a rule. An entry is done, and moves no more, once
    its bracket, at whose ends f has been seen to lie below and above y, is narrow enough: a root
    is never only believed.

    With respect to y and to whatever f depends on, gradients are those of the implicit function
    theorem, :math:`dx = (dy - \partial_\theta f\,d\theta) / f'(x)`.

    Args:
        tolerance: half the width of a bracket that is narrow enough, relative to the larger of 1
            and \|x\|; default 2e-7 in float32 (and below) and 2e-11 in float64, but never less
            than the type can tell apart.
        max_iterations: largest number of evaluations of f.

    Raises:
        ValueError: for a tolerance or a number of iterations that is not positive, and when
            called, for y that is not finite.
        ConvergenceError: when called, if a bracket is not found or does not become narrow.

    Reference:
        Press et al., Numerical Recipes, 3rd ed., 2007, section 9.4.

    Example:
        >>> import torch
        >>> from pyro_resflow.solvers import BracketedNewton
        >>> y = torch.tensor([1.0, 8.0, 27.0])
        >>> x = BracketedNewton()(lambda x: (x**3, 3 * x**2), y, torch.zeros(3), y)
        >>> torch.allclose(x, torch.tensor([1.0, 2.0, 3.0]))
        True
    """

    def __init__(self, *, tolerance: float | None = None, max_iterations: int = 200) -> None:
        super().__init__(tolerance=tolerance, max_iterations=max_iterations)

    def __call__(self, function: Increasing, y: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        """x with f(x) = y.

        Args:
            function: from x, of the shape of y, to f(x) and its derivative f'(x).
            y: any shape.
            lower: where f is about y or less; the bracket is widened until it is.
            upper: where f is about y or more, at least ``lower``.
        """
        if not y.is_meta and not bool(y.isfinite().all()):
            raise ValueError("y: expected finite values, got nan or infinity.")
        with torch.no_grad():
            search = _Search(function, y, self.tolerance_for(y.dtype), self.max_iterations)
            x = search.run(lower.expand_as(y), upper.expand_as(y))
        if not torch.is_grad_enabled():
            return x
        value, slope = function(x)
        return _ImplicitRoot.apply(x, value - y, slope.detach())


class _Search:
    """The brackets of all entries, and the evaluations spent on them."""

    def __init__(
        self, function: Increasing, y: Tensor, tolerance: float, max_iterations: int
    ) -> None:
        self.function = function
        self.y = y
        self.tolerance = max(tolerance, torch.finfo(y.dtype).eps)
        self.max_iterations = max_iterations
        self.evaluations = 0

    def run(self, lower: Tensor, upper: Tensor) -> Tensor:
        """The roots, of the shape of y."""
        if self.y.is_meta:
            return (lower + upper) / 2
        width = torch.maximum(upper - lower, self._margin(lower))
        lower, upper = self._pushed_out(lower, -width), self._pushed_out(upper, width)
        x = (lower + upper) / 2
        last_step, reach = upper - lower, self._margin(x)
        while True:
            value, slope = self._evaluate(x)
            below = value < self.y
            lower = torch.where(below, x, lower)
            upper = torch.where(value >= self.y, x, upper)
            middle, margin = (lower + upper) / 2, self._margin(x)
            newton = x + (self.y - value) / slope
            settled = upper - lower <= 3 * margin
            if bool(settled.all()):
                return torch.where(newton.isnan(), middle, newton.clamp(lower, upper))
            step = (newton - x).abs()
            # a step this short goes on beyond the root, to close the bracket; further each time,
            # for f is known no better than it is rounded
            final = step <= margin
            target = newton + torch.where(below, reach, -reach).masked_fill(~final, 0)
            good = (target > lower) & (target < upper) & (final | (step < last_step / 2))
            last_step = torch.where(good, step, upper - lower)
            reach = torch.where(good & final, 4 * reach, reach)
            x = torch.where(settled, x, torch.where(good, target, middle))

    def _pushed_out(self, end: Tensor, step: Tensor) -> Tensor:
        """An end of the bracket, moved by more and more until f there is on its side of y."""
        while True:
            excess = self._evaluate(end)[0] - self.y
            good = torch.where(step > 0, excess >= 0, excess <= 0)
            if bool(good.all()):
                return end
            end = torch.where(good, end, end + step)
            step = torch.where(good, step, 2 * step)

    def _margin(self, x: Tensor) -> Tensor:
        return self.tolerance * x.abs().clamp_min(1)

    def _evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = self.function(x)
        if self.evaluations == self.max_iterations:
            residual = (value - self.y).abs()
            raise ConvergenceError(
                f"function: no root within the tolerance after {self.evaluations} evaluations; "
                f"the largest residual is {float(residual.max()):.2e}. Either the function does "
                "not increase, or it is not finite (after training, look for nan in the "
                "parameters), or y lies outside its range; else raise max_iterations.",
                iterations=self.evaluations,
                residual=float(residual.max()),
            )
        self.evaluations += 1
        return value, slope


class _ImplicitRoot(torch.autograd.Function):
    """The root x, whose gradient goes to the residual f(x) - y."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        remedy = "the inverse is differentiable once; score data in the direction that is fast."
        return (None, *first_derivative_only([-grad / slope], remedy), None)
