"""The coefficients of chains: those of all their affine maps in one operation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, cast

from torch import Tensor

from ..activations import LipSwish
from ..lipschitz.base import LipschitzLayer
from ..lipschitz.together import measured_together, scaled_together
from ..lipschitz.update import layers_updated
from ..stages import Affine, Core, Gain, Stage

Stages = Sequence[Stage[Any]]


def coefficients_of(chains: Sequence[Stages]) -> list[tuple[Tensor, ...]]:
    """The coefficients of several chains.

    Args:
        chains: the stages of each.
    """
    stages = [*chain.from_iterable(chains)]
    layers: list[object] = []
    for stage in stages:
        layers.extend(stage.layers)
    with layers_updated(layers):
        together = _together(stages) if len(chains) > 1 else {}
        found = []
        for each in chains:
            coefficients: list[Tensor] = []
            for stage in each:
                if stage.size:
                    coefficients.extend(together.get(stage) or stage.coefficients())
            found.append(tuple(coefficients))
    return found


def _together(stages: Stages) -> Mapping[Stage[Any], tuple[Tensor, ...]]:
    """The coefficients of all affine maps among some stages."""
    affine = [stage for stage in stages if isinstance(stage, Affine)]
    return _affine_coefficients(affine, _gains(stages))


def _gains(stages: Stages) -> Mapping[Gain, Tensor | float]:
    """The gains of all LipSwish activations, computed together."""
    swishes = [
        stage.activation
        for stage in stages
        if isinstance(stage, Core) and type(stage.activation) is LipSwish
    ]
    return LipSwish.gains_together(swishes) if len(swishes) > 1 else {}


def _affine_coefficients(
    stages: Sequence[Affine], known: Mapping[Gain, Tensor | float]
) -> Mapping[Stage[Any], tuple[Tensor, ...]]:
    """The coefficients of affine maps, unless each has to be asked for its own.

    Args:
        stages: the affine maps.
        known: gains whose values have been computed.
    """
    layers = [cast(LipschitzLayer, stage.layer) for stage in stages]
    measured = measured_together(layers) if len(layers) > 1 else None
    if measured is None:
        return {}
    weights, gains = [], []
    scaled, biases, bias_gains = [], [], []
    for stage, layer in zip(stages, layers, strict=True):
        gain, after = stage.gains(known)
        weights.append(layer.weight)
        gains.append(gain)
        if stage.after and layer.bias is not None:
            scaled.append(stage)
            biases.append(layer.bias)
            bias_gains.append(after)
    effective, scaled_biases = scaled_together(weights, measured, gains, biases, bias_gains)
    bias_of = dict(zip(scaled, scaled_biases, strict=True))
    found: dict[Stage[Any], tuple[Tensor, ...]] = {}
    for stage, layer, weight in zip(stages, layers, effective, strict=True):
        bias = bias_of.get(stage, layer.bias)
        found[stage] = (weight,) if bias is None else (weight, bias)
    return found
