"""The coefficients of chains: those of all their affine maps in one operation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
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
    stages = [stage for chain in chains for stage in chain]
    layers = [layer for stage in stages for layer in stage.layers]
    with layers_updated(layers):
        together = {} if torch.compiler.is_compiling() else _together(stages)
        found = []
        for chain in chains:
            coefficients: list[Tensor] = []
            for stage in chain:
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
    gains = [stage.gains(known) for stage in stages]
    scaled = [i for i, stage in enumerate(stages) if stage.after and stage.size > 1]
    weights, biases = scaled_together(
        [layer.weight for layer in layers],
        measured,
        [gain for gain, _ in gains],
        [cast(Tensor, layers[i].bias) for i in scaled],
        [gains[i][1] for i in scaled],
    )
    bias_of = dict(zip(scaled, biases, strict=True))
    found: dict[Stage[Any], tuple[Tensor, ...]] = {}
    for i, (stage, weight) in enumerate(zip(stages, weights, strict=True)):
        bias = bias_of.get(i, layers[i].bias)
        found[stage] = (weight,) if bias is None else (weight, bias)
    return found
