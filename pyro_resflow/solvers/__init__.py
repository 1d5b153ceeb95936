r"""Solvers, each with gradients by the implicit function theorem (torch only).

:class:`Anderson`, :class:`FixedPoint` and :class:`NewtonKrylov` solve x + g(x) = y. They measure
a sample's error by the residual :math:`r = y - x - g(x)`, relative to
:math:`\max(1, |y|_\infty)`, and freeze a sample once its residual is within tolerance.
:class:`BracketedNewton` solves f(x) = y for increasing functions of one variable, entry by entry.
By default all raise :class:`ConvergenceError` rather than return a point that is not a solution.
"""

from .anderson import Anderson
from .bracketed_newton import BracketedNewton
from .convergence import ConvergenceError, FixedPointError
from .fixed_point import FixedPoint
from .iteration import FixedPointIteration
from .newton_krylov import NewtonKrylov
from .solver import FixedPointSolver

Solver = FixedPointSolver
"""The earlier name of :class:`FixedPointSolver`."""

__all__ = [
    "Anderson",
    "BracketedNewton",
    "ConvergenceError",
    "FixedPoint",
    "FixedPointError",
    "FixedPointIteration",
    "FixedPointSolver",
    "NewtonKrylov",
    "Solver",
]
