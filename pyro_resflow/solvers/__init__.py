r"""Solvers of x + g(x) = y, each with gradients by the implicit function theorem (torch only).

All of them measure a sample's error by the residual :math:`r = y - x - g(x)`, relative to
:math:`\max(1, |y|_\infty)`, freeze a sample once its residual is within tolerance, and raise
:class:`ConvergenceError` rather than return a point that is not a solution.
"""

from .anderson import Anderson
from .base import Solver
from .fixed_point import FixedPoint
from .iteration import ConvergenceError, FixedPointIteration
from .newton_krylov import NewtonKrylov

__all__ = [
    "Anderson",
    "ConvergenceError",
    "FixedPoint",
    "FixedPointIteration",
    "NewtonKrylov",
    "Solver",
]
