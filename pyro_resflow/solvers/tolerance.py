"""The tolerance and the number of iterations, which every solver has."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from ..differentiation import torch_func_is_active
from ..rebuilding import Rebuildable

Unsolved = Literal["raise", "nan"]

SINGLE_TOLERANCE = 2e-7
"""A little less than two units of float32's rounding: the least that most networks reach."""

DOUBLE_TOLERANCE = 2e-11
"""Five digits above float64's rounding, and four digits below the tolerance of float32."""


class Iterative(Rebuildable):
    """A solver that iterates until it is within a tolerance.

    Args:
        tolerance: when to stop; default 2e-7 in float32 (and below) and 2e-11 in float64.
        max_iterations: when to give up.
        unsolved: ``"raise"`` an error for samples or entries that are not solved by then, or
            return ``"nan"`` for them and for inputs that are not finite.

    Raises:
        ValueError: for a tolerance or a number of iterations that is not positive, and for
            another ``unsolved``.
    """

    def __init__(
        self, *, tolerance: float | None, max_iterations: int, unsolved: Unsolved = "raise"
    ) -> None:
        if tolerance is not None and not tolerance > 0:
            raise ValueError(f"tolerance: expected a positive number, got {tolerance}.")
        if max_iterations < 1:
            raise ValueError(
                f"max_iterations: expected an integer of at least 1, got {max_iterations}."
            )
        if unsolved not in get_args(Unsolved):
            raise ValueError(f"unsolved: expected 'raise' or 'nan', got {unsolved!r}.")
        self.tolerance = tolerance
        self.max_iterations = max_iterations
        self.unsolved = unsolved

    def tolerance_for(self, dtype: torch.dtype) -> float:
        """The tolerance in force for a floating-point type."""
        if self.tolerance is not None:
            return self.tolerance
        return DOUBLE_TOLERANCE if dtype == torch.float64 else SINGLE_TOLERANCE

    def refuse_torch_func(self) -> None:
        """Raise inside ``torch.func``, where single entries cannot be replaced by nan.

        Raises:
            RuntimeError: naming the remedy.
        """
        if torch_func_is_active():
            raise RuntimeError(
                "unsolved: expected 'raise' inside a transformation of torch.func, got "
                f"{self.unsolved!r}. Solve outside of it, or use a solver with unsolved='raise'."
            )
