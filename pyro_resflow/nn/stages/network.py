"""A network that consists of stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ...differentiation import is_only_evaluated
from ...linearization import Linearization
from .perceptron import LinearizedPerceptron, evaluate_perceptron, is_perceptron
from .sequence import LinearizedStages, evaluate
from .stage import Stage


class StagedNetwork:
    """A :class:`pyro_resflow.linearization.Linearizable` that consists of stages.

    Args:
        stages: at least one.
    """

    def __init__(self, stages: Sequence[Stage[Any]]) -> None:
        self.stages = stages
        self.is_perceptron = is_perceptron(stages)

    def __call__(self, x: Tensor) -> Tensor:
        """The network at x of shape ``(N, *event)``."""
        return self.evaluate(x, self.coefficients())

    def coefficients(self) -> tuple[Tensor, ...]:
        """The coefficients of all stages, in order."""
        return tuple(c for stage in self.stages for c in stage.coefficients())

    def evaluate(self, x: Tensor, coefficients: Sequence[Tensor]) -> Tensor:
        """The network at x of shape ``(N, *event)`` with given coefficients."""
        if self.is_perceptron and x.dim() == 2 and is_only_evaluated(x, *coefficients):
            return evaluate_perceptron(self.stages, x, coefficients)
        return evaluate(self.stages, x, coefficients)

    def linearize(self, x: Tensor, coefficients: Sequence[Tensor] | None = None) -> Linearization:
        """The network at x of shape ``(N, *event)``, with products with its Jacobian."""
        given = self.coefficients() if coefficients is None else coefficients
        if self.is_perceptron and x.dim() == 2:
            return LinearizedPerceptron(self.stages, x, given)
        return LinearizedStages(self.stages, x, given)
