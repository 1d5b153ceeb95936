"""The errors that solvers raise, and the check of their input."""

from __future__ import annotations

from torch import Tensor

NAMED = 5
"""Largest number of failed samples or entries whose indices a message lists."""


class ConvergenceError(ValueError):
    """A solver did not reach its tolerance.

    Attributes:
        iterations: evaluations spent.
        residual: largest residual left, relative for the solvers of fixed points.
        failed: mask of the unsolved samples, shape ``(N,)``, for the solvers of fixed points; of
            the unsolved entries, same shape as y, for :class:`BracketedNewton`.
    """

    def __init__(
        self, message: str, *, iterations: int, residual: float, failed: Tensor | None = None
    ) -> None:
        super().__init__(message)
        self.iterations = iterations
        self.residual = residual
        self.failed = failed


def which(failed: Tensor, unit: str) -> str:
    """The number and the first indices of failed samples or entries: "2 of 50 samples (3, 17)"."""
    indices = failed.nonzero()
    named = [", ".join(map(str, index)) for index in indices[:NAMED].tolist()]
    if failed.dim() != 1:
        named = [f"({index})" for index in named]
    more = ", ..." if len(indices) > NAMED else ""
    return f"{len(indices)} of {failed.numel()} {unit} ({', '.join(named)}{more})"


def check_finite(y: Tensor, unit: str) -> None:
    """Raise if y holds nan or infinity.

    Args:
        y: the right-hand side, shape ``(N, *event)`` for samples, any shape for entries.
        unit: ``"samples"`` or ``"entries"``.

    Raises:
        ValueError: if y is not finite; it names the samples or entries.
    """
    if y.is_meta:
        return
    finite = y.isfinite()
    if bool(finite.all()):
        return
    failed = ~(finite.flatten(1).all(1) if unit == "samples" else finite)
    raise ValueError(
        f"y: expected finite values, got nan or infinity for {which(failed, unit)}. If the data "
        "are finite, look for nan in the parameters of the modules that compute y, such as later "
        "transforms or a coupling's conditioner. A solver with unsolved='nan' returns the rest."
    )


class FixedPointError(ConvergenceError):
    """No x with x + g(x) = y was found.

    Attributes:
        iterations: network evaluations spent.
        residual: largest relative residual left.
        contraction: measured contraction factor of g at the last point, the largest over the
            samples; 1 or more means that g is not a contraction.
        failed: mask of the unsolved samples, shape ``(N,)``.
    """

    def __init__(
        self, iterations: int, residual: float, contraction: float, failed: Tensor
    ) -> None:
        super().__init__(
            f"net: no solution of x + g(x) = y after {iterations} evaluations for "
            f"{which(failed, 'samples')}; the largest "
            f"relative residual is {residual:.2e} and the measured contraction factor of g is "
            f"{contraction:.3f}. A factor of 1 or more means that g is not a contraction: build "
            "it from pyro_resflow.nn layers, or lower its coefficient. Below 1, raise "
            "max_iterations or the tolerance. A solver with unsolved='nan' returns the rest.",
            iterations=iterations,
            residual=residual,
            failed=failed,
        )
        self.contraction = contraction
