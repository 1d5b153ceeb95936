"""Banach's iteration."""

from __future__ import annotations

from torch import Tensor

from .iteration import FixedPointIteration
from .solver import FixedPointSolver


class FixedPoint(FixedPointSolver):
    r"""Banach's iteration :math:`x \leftarrow y - g(x)`.

    Each step multiplies the error by the Lipschitz constant L or less, so that about
    :math:`\log(\mathrm{tolerance})/\log L` evaluations are enough.
    """

    def solve(self, iteration: FixedPointIteration) -> Tensor:
        while not iteration.done:
            if iteration.exhausted:
                raise iteration.failure()
            iteration.move(iteration.x + iteration.residual)
        return iteration.x
