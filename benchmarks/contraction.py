"""Measure how far layers exceed their coefficient, independently of their own norms."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyro_resflow.nn.lipschitz.layer import LipschitzLayer


class Excess(NamedTuple):
    """The layer whose norm exceeds its coefficient most.

    Attributes:
        relative: norm / coefficient - 1; negative if every layer is below its own.
        layer: the layer's name.
    """

    relative: float
    layer: str


class LongPowerIteration:
    r"""The largest singular value of each layer's effective weight, by power iteration in float64.

    The iteration has its own vectors, separate from those of the layers. They start at random and
    continue from call to call: in a training run they are iterated many thousand times while the
    weights change slowly.

    Args:
        flow: any module.
        iterations: products with :math:`A^T A` in a call.
    """

    def __init__(self, flow: nn.Module, iterations: int = 10) -> None:
        self.layers = {n: m for n, m in flow.named_modules() if isinstance(m, LipschitzLayer)}
        self.iterations = iterations
        self.vectors: dict[str, Tensor] = {}

    @torch.no_grad()
    def norms(self) -> dict[str, float]:
        """The norm of each layer's effective weight, by the layer's name."""
        return {name: self._norm(name, layer) for name, layer in self.layers.items()}

    def excess(self) -> Excess:
        """The largest excess of a layer's norm over its coefficient."""
        norms = self.norms().items()
        return max(
            Excess(norm / self.layers[name].norm.coefficient - 1, name) for name, norm in norms
        )

    def _norm(self, name: str, layer: LipschitzLayer) -> float:
        operator = layer.operator(layer.effective_weight().double())
        v = self.vectors.get(name)
        if v is None:
            v = torch.randn(1, *operator.domain, dtype=torch.float64)
        for _ in range(self.iterations):
            v = operator.adjoint(operator.apply(v / torch.linalg.vector_norm(v)))
        self.vectors[name] = v = v / torch.linalg.vector_norm(v)
        return float(torch.linalg.vector_norm(operator.apply(v)))
