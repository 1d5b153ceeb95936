"""Roots of increasing functions of one variable, many at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..differentiation import (
    forward_rule,
    gradients_where_needed,
    needs_graph,
    pulled_back,
    pushed_forward,
    with_signature,
)
from ..linearization import without_history
from .convergence import ConvergenceError, check_finite, which
from .tolerance import Iterative, Unsolved

Increasing = Callable[..., tuple[Tensor, Tensor]]


NARROW = 3
"""Width of a bracket that is narrow enough, in margins: one margin to each side of the root, where
the steps that close a bracket land, and one for their rounding."""

OVERSHOOT_GROWTH = 4
"""Growth factor of the steps beyond a root until they reach its other side. Near the root, the
rounding of f may give f - y the wrong sign."""


class BracketedNewton(Iterative):
    r"""Solve f(x) = y entry by entry, where f increases: Newton's method inside a bracket.

    Bisection replaces a Newton step that leaves the bracket, or that is not shorter than half of
    the last step. Usually a handful of evaluations is enough; the worst case is a few times
    :math:`\log_2` of the bracket's width over the tolerance. An entry is done, and moves no more,
    once its bracket is narrow enough. f has been evaluated at both ends of the bracket, below and
    above y, so that every root is verified.

    Gradients with respect to y and the coefficients of f follow from the implicit function
    theorem, :math:`dx = (dy - \partial_\theta f\,d\theta) / f'(x)`, for all orders and modes.

    Args:
        tolerance: a third of the width of a bracket that is narrow enough, relative to the larger
            of 1 and \|x\|; default 2e-7 in float32 (and below) and 2e-11 in float64, but at least
            the machine epsilon of the dtype.
        max_iterations: largest number of evaluations of f.
        unsolved: ``"raise"`` an error for the call if entries are not done by then, or return
            ``"nan"`` for them, and for entries with y not finite or without
            ``lower <= upper``. No gradient flows through these entries.

    Raises:
        ValueError: for a tolerance or a number of iterations that is not positive or another
            ``unsolved``, and when called, for y that is not finite.
        ConvergenceError: when called, if a bracket is not found or does not become narrow; it
            names the entries.

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

    def __init__(
        self,
        *,
        tolerance: float | None = None,
        max_iterations: int = 200,
        unsolved: Unsolved = "raise",
    ) -> None:
        super().__init__(tolerance=tolerance, max_iterations=max_iterations, unsolved=unsolved)

    def __call__(
        self,
        function: Increasing,
        y: Tensor,
        lower: Tensor,
        upper: Tensor,
        coefficients: Sequence[Tensor] = (),
    ) -> Tensor:
        """Solve f(x) = y for x, same shape as y.

        Args:
            function: ``function(x, *coefficients)`` returns f(x) and its derivative f'(x).
            y: any shape.
            lower: a point where f is about y or less; the bracket is widened until f is.
            upper: a point where f is about y or more, at least ``lower``.
            coefficients: every tensor other than x that f depends on and that may need a gradient.
        """
        lower, upper = lower.expand_as(y), upper.expand_as(y)
        attempt = _EntrywiseAttempt(self)
        if self.unsolved == "raise" or y.is_meta:
            return _ImplicitRoot.apply(attempt, function, y, lower, upper, *coefficients)
        self.refuse_torch_func()
        hopeless = ~(y.isfinite() & (lower <= upper))
        y, lower, upper = (each.masked_fill(hopeless, 0) for each in (y, lower, upper))
        attempt.failed = hopeless
        root = _ImplicitRoot.apply(attempt, function, y, lower, upper, *coefficients)
        return root.masked_fill(attempt.failed, torch.nan)


class _EntrywiseAttempt:
    """A solver for one call, which records the entries that it skips or cannot solve."""

    def __init__(self, solver: BracketedNewton) -> None:
        self.solver = solver
        self.failed: Tensor | None = None

    def run(self, search: _Search, lower: Tensor, upper: Tensor) -> Tensor:
        """The roots; if entries may fail, zero in place of those that do."""
        if self.failed is not None:
            search.lost = self.failed
        root = search.run(lower, upper)
        if self.failed is None:
            if not root.is_meta and bool(search.lost.any()):
                raise search.failure()
            return root
        self.failed = search.lost
        return root.masked_fill(self.failed, 0)


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
        self.lost = torch.zeros_like(y, dtype=torch.bool)
        """Mask of the entries that have been given up or are skipped."""
        self.residual = torch.zeros_like(y)

    def run(self, lower: Tensor, upper: Tensor) -> Tensor:
        """The roots, same shape as y; any point where entries are lost."""
        if self.y.is_meta:
            return (lower + upper) / 2
        # a quarter of the largest number: widths, and steps of their size, do not overflow
        largest = torch.finfo(self.y.dtype).max / 4
        lower, upper = lower.clamp(-largest, largest), upper.clamp(-largest, largest)
        width = torch.maximum(upper - lower, self._margin(lower))
        lower = self._pushed_out(lower, -width, largest)
        upper = self._pushed_out(upper, width, largest)
        x = _middle(lower, upper)
        last_step, reach = upper - lower, self._margin(x)
        while True:
            value, slope = self._evaluate(x)
            below = value < self.y
            lower = torch.where(below, x, lower)
            upper = torch.where(value >= self.y, x, upper)
            middle, margin = _middle(lower, upper), self._margin(x)
            newton = x + (self.y - value) / slope
            settled = self.lost | (upper - lower <= NARROW * margin)
            if self._is_over(settled):
                return torch.where(newton.isnan(), middle, newton.clamp(lower, upper))
            step = (newton - x).abs()
            # a step this short continues beyond the root, to close the bracket; further each
            # time, because rounding of f may give f - y the wrong sign near the root
            final = step <= margin
            target = newton + torch.where(below, reach, -reach).masked_fill(~final, 0)
            good = (target > lower) & (target < upper) & (final | (step < last_step / 2))
            last_step = torch.where(good, step, upper - lower)
            reach = torch.where(good & final, OVERSHOOT_GROWTH * reach, reach)
            x = torch.where(settled, x, torch.where(good, target, middle))

    def _pushed_out(self, end: Tensor, step: Tensor, largest: float) -> Tensor:
        """Move an end of the bracket until f there is on its side of y.

        The steps grow by factors of 2, 4, 16, 256 and so on, to cross all numbers in a few steps.
        """
        growth = 2.0
        while True:
            excess = self._evaluate(end)[0] - self.y
            good = self.lost | torch.where(step > 0, excess >= 0, excess <= 0)
            if self._is_over(good):
                return end
            self.lost = self.lost | ~(good | (end.abs() < largest))
            end = torch.where(good, end, (end + step).clamp(-largest, largest))
            step = torch.where(good, step, (growth * step).clamp(-largest, largest))
            growth = min(growth * growth, largest)

    def _is_over(self, done: Tensor) -> bool:
        """Whether all entries are done, or the evaluations spent, which loses the others."""
        if bool(done.all()):
            return True
        if self.evaluations < self.max_iterations:
            return False
        self.lost = self.lost | ~done
        return True

    def _margin(self, x: Tensor) -> Tensor:
        return self.tolerance * x.abs().clamp_min(1)

    def _evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = self.function(x)
        self.residual = torch.where(self.lost, self.residual, (value - self.y).abs())
        self.evaluations += 1
        return value, slope

    def failure(self) -> ConvergenceError:
        """The error to raise for the entries that are lost."""
        residual = float(self.residual[self.lost].max())
        return ConvergenceError(
            f"function: no root within the tolerance after {self.evaluations} evaluations for "
            f"{which(self.lost, 'entries')}; the largest residual is {residual:.2e}. Either the "
            "function does not increase, or it is not finite (after training, look for nan in the "
            "parameters), or y lies outside its range; else raise max_iterations. A solver with "
            "unsolved='nan' returns the rest.",
            iterations=self.evaluations,
            residual=residual,
            failed=self.lost,
        )


WIDE = 16
"""A bracket is halved on a logarithmic scale if it is this many times as wide as its nearer end,
or as 1 if that is larger."""


def _middle(lower: Tensor, upper: Tensor) -> Tensor:
    """The middle of brackets, for wide ones on the scale of asinh: few halvings cross all numbers.

    Like the tolerance, asinh is linear near 0 and logarithmic far from it.
    """
    plain = (lower + upper) / 2
    near = torch.minimum(lower.abs(), upper.abs()).clamp_min(1)
    wide = upper - lower > WIDE * near
    if not bool(wide.any()):
        return plain
    curved = ((lower.asinh() + upper.asinh()) / 2).sinh()
    return torch.where(wide, curved, plain)


class _ImplicitRoot(torch.autograd.Function):
    """The root x of f(x) = y, with gradients of any order by the implicit function theorem."""

    @staticmethod
    @with_signature
    def forward(
        attempt: _EntrywiseAttempt,
        function: Increasing,
        y: Tensor,
        lower: Tensor,
        upper: Tensor,
        *coefficients: Tensor,
    ) -> Tensor:
        check_finite(y, "entries")
        tolerance, most = attempt.solver.tolerance_for(y.dtype), attempt.solver.max_iterations
        search = _Search(lambda x: function(x, *coefficients), y, tolerance, most)
        return attempt.run(search, lower, upper)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.function, _, _, _, *coefficients = inputs
        ctx.save_for_backward(output, *coefficients)
        ctx.save_for_forward(output, *coefficients)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        root, *coefficients = ctx.saved_tensors
        needed = ctx.needs_input_grad[5:]
        if needs_graph(root, grad, *coefficients):
            # the derivative holds at a fixed root, and itself depends on the root
            adjoint = grad / ctx.function(root, *coefficients)[1]
            at_root = partial(_value_at, ctx.function, root)
            gradients = pulled_back(at_root, coefficients, -adjoint, needed)
        else:
            names = without_history(coefficients)
            with torch.enable_grad():
                value, slope = ctx.function(root.detach(), *names)
            adjoint = grad / slope.detach()
            gradients = gradients_where_needed([value], [-adjoint], names, needed)
        return (None, None, adjoint, None, None, *gradients)

    @staticmethod
    @forward_rule
    def jvp(
        ctx: Any,
        saved: Sequence[Tensor],
        attempt: None,
        function: None,
        dy: Tensor | None,
        lower: Tensor | None,
        upper: Tensor | None,
        *along: Tensor | None,
    ) -> Tensor:
        root, *coefficients = saved
        at_root = partial(_value_at, ctx.function, root)
        change = -pushed_forward(at_root, coefficients, along, root)
        return (change if dy is None else dy + change) / ctx.function(root, *coefficients)[1]

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        attempt: _EntrywiseAttempt,
        function: Increasing,
        *tensors: Tensor,
    ) -> tuple[Tensor, int]:
        y_dim, lower_dim, upper_dim, *dims = in_dims[2:]
        y, lower, upper, *coefficients = tensors
        y = y.movedim(y_dim, 0) if y_dim is not None else y.expand(info.batch_size, *y.shape)
        ends = (_mapped_end(y, end, dim) for end, dim in ((lower, lower_dim), (upper, upper_dim)))
        mapped = torch.func.vmap(function, in_dims=(0, *dims))
        return _ImplicitRoot.apply(attempt, mapped, y, *ends, *coefficients), 0


def _mapped_end(y: Tensor, end: Tensor, in_dim: int | None) -> Tensor:
    """An end of the brackets, expanded to y, whose first dimension is mapped over."""
    if in_dim is None:
        return end.expand_as(y)
    end = end.movedim(in_dim, 0)
    return end.reshape(len(end), *[1] * (y.dim() - end.dim()), *end.shape[1:]).expand_as(y)


def _value_at(function: Increasing, x: Tensor, *coefficients: Tensor) -> Tensor:
    return function(x, *coefficients)[0]
