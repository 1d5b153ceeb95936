"""The tolerance and the number of iterations, which every solver has."""

from __future__ import annotations

import torch

from ..rebuilding import Rebuildable


class Iterative(Rebuildable):
    """What iterates until it is within a tolerance.

    Args:
        tolerance: when to stop; default 2e-7 in float32 (and below) and 2e-11 in float64.
        max_iterations: when to give up.

    Raises:
        ValueError: for a tolerance or a number of iterations that is not positive.
    """

    def __init__(self, *, tolerance: float | None, max_iterations: int) -> None:
        if tolerance is not None and not tolerance > 0:
            raise ValueError(f"tolerance: expected a positive number, got {tolerance}.")
        if max_iterations < 1:
            raise ValueError(
                f"max_iterations: expected an integer of at least 1, got {max_iterations}."
            )
        self.tolerance = tolerance
        self.max_iterations = max_iterations

    def tolerance_for(self, dtype: torch.dtype) -> float:
        """The tolerance in force for a floating-point type."""
        if self.tolerance is not None:
            return self.tolerance
        return 2e-11 if dtype == torch.float64 else 2e-7
