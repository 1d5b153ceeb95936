"""Lipschitz layers for tests, with functions that change and measure them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from pyro_resflow.nn import (
    InducedNorm,
    LipschitzConv2d,
    LipschitzLayer,
    LipschitzLinear,
    SpectralNorm,
)


class CountingNorm(SpectralNorm):
    """Counts power iterations; ``pause`` makes each of them take a while."""

    updates = 0
    pause = 0.0

    def iterate_together(self, operators, us, vs):
        self.updates += len(operators)
        time.sleep(self.pause)
        return super().iterate_together(operators, us, vs)


MakeLayer = Callable[[], LipschitzLayer]
LAYERS: dict[str, tuple[MakeLayer, tuple[int, ...]]] = {
    "linear": (lambda: LipschitzLinear(4, 5), (4,)),
    "convolution": (lambda: LipschitzConv2d(2, 3, 3, (3, 4)), (2, 3, 4)),
    "induced": (lambda: LipschitzLinear(4, 5, InducedNorm(3.0, 1.5)), (4,)),
    "induced convolution": (
        lambda: LipschitzConv2d(2, 3, 3, (3, 4), InducedNorm(1.5, 3.0)),
        (2, 3, 4),
    ),
}


def layer_above_its_coefficient(name: str) -> LipschitzLayer:
    layer = LAYERS[name][0]()
    with torch.no_grad():
        layer.weight.mul_(5)
    return layer


def batch(name: str, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(3, *LAYERS[name][1], dtype=dtype)


def operator_norm(layer: LipschitzLayer) -> Tensor:
    """The largest singular value of a layer's effective map, from its matrix."""
    weight = layer.effective_weight().detach().double()
    operator = layer.operator(weight)
    units = torch.eye(math.prod(operator.domain), dtype=torch.float64)
    images = operator.apply(units.unflatten(1, operator.domain))
    return torch.linalg.matrix_norm(images.flatten(1), 2)


def train(layer: LipschitzLayer, x: Tensor) -> None:
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    optimizer.zero_grad()
    layer(x).square().sum().backward()
    optimizer.step()


@torch.no_grad()
def redraw(layer: LipschitzLayer) -> None:
    layer.weight.normal_().mul_(5)


def event_shape(layer: LipschitzLayer) -> tuple[int, ...]:
    if isinstance(layer, LipschitzConv2d):
        return (layer.weight.shape[1], *layer.input_size)
    return (layer.weight.shape[1],)
