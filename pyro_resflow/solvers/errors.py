"""What solvers raise."""

from __future__ import annotations


class ConvergenceError(ValueError):
    """A solver did not reach its tolerance.

    Attributes:
        iterations: evaluations spent.
        residual: largest residual left, relative for the solvers of fixed points.
    """

    def __init__(self, message: str, *, iterations: int, residual: float) -> None:
        super().__init__(message)
        self.iterations = iterations
        self.residual = residual


class FixedPointError(ConvergenceError):
    """No x with x + g(x) = y was found.

    Attributes:
        iterations: network evaluations spent.
        residual: largest relative residual left.
        contraction: measured contraction factor of g at the last point, the largest over the
            samples; 1 or more means that g is no contraction.
    """

    def __init__(self, iterations: int, residual: float, contraction: float) -> None:
        super().__init__(
            f"net: no solution of x + g(x) = y after {iterations} evaluations; the largest "
            f"relative residual is {residual:.2e} and the measured contraction factor of g is "
            f"{contraction:.3f}. A factor of 1 or more means that g is not a contraction: build "
            "it from pyro_resflow.nn layers, or lower its coefficient. Below 1, raise "
            "max_iterations or the tolerance.",
            iterations=iterations,
            residual=residual,
        )
        self.contraction = contraction
