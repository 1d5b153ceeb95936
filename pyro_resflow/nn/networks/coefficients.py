"""Compute the coefficients of chains, those of all affine maps in one operation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any, cast

import torch
from torch import Tensor

from ..activations import LEARNED_BETAS, LipSwish
from ..lipschitz.infinity_norm import InfinityNormLinear, effective_weights
from ..lipschitz.layer import LipschitzLayer
from ..lipschitz.together import measured_together, scaled_together
from ..lipschitz.update import layers_updated
from ..stages import Affine, Core, Stage, product

Stages = Sequence[Stage[Any]]


def coefficients_of(chains: Sequence[Stages]) -> list[tuple[Tensor, ...]]:
    """The coefficients of several chains.

    Args:
        chains: the stages of each chain.

    Returns:
        For each chain, the coefficients of its stages in order.
    """
    if torch.compiler.is_compiling():  # each layer checks its norm, by an operation
        return [_one_by_one(stages) for stages in chains]
    stages = [*chain.from_iterable(chains)]
    layers: list[object] = []
    for stage in stages:
        layers.extend(stage.layers)
    with layers_updated(layers):
        together = _of_affine_maps(stages)
        found = []
        for each in chains:
            coefficients: list[Tensor] = []
            for stage in each:
                if stage.size:
                    coefficients.extend(together.get(stage) or stage.coefficients())
            found.append(tuple(coefficients))
    return found


def _one_by_one(stages: Stages) -> tuple[Tensor, ...]:
    coefficients: list[Tensor] = []
    for stage in stages:
        coefficients.extend(stage.coefficients())
    return tuple(coefficients)


def _of_affine_maps(stages: Stages) -> Mapping[Stage[Any], tuple[Tensor, ...]]:
    """The coefficients of all affine maps among stages, by stage.

    Empty if there is only one affine map, or if one of them has to compute its own coefficients.
    """
    affine: list[Affine] = []
    swishes: list[LipSwish] = []
    bounded: list[Affine] = []
    for stage in stages:
        if isinstance(stage, Affine):
            if isinstance(stage.layer, InfinityNormLinear):
                bounded.append(stage)
            elif isinstance(stage.layer, LipschitzLayer):
                affine.append(stage)
            else:
                return {}  # a user's own layer
        elif isinstance(stage, Core) and type(stage.activation) in LEARNED_BETAS:
            swishes.append(cast(LipSwish, stage.activation))
    found = _bounded(bounded) if len(bounded) > 1 else {}
    return {**found, **_scaled(affine, swishes)} if len(affine) > 1 else found


def _bounded(stages: Sequence[Affine]) -> Mapping[Stage[Any], tuple[Tensor, ...]]:
    """The coefficients of affine maps whose rows are bounded, by stage."""
    layers = cast(list[InfinityNormLinear], list(map(attrgetter("layer"), stages)))
    afters = [product(stage.after) for stage in stages]
    gains = [product(stage.before) * after for stage, after in zip(stages, afters, strict=True)]
    found: dict[Stage[Any], tuple[Tensor, ...]] = {}
    weights = effective_weights(layers, gains)
    for stage, layer, after, weight in zip(stages, layers, afters, weights, strict=True):
        bias = layer.bias * after if stage.after and layer.bias is not None else layer.bias
        found[stage] = (weight,) if bias is None else (weight, bias)
    return found


def _scaled(
    stages: Sequence[Affine], swishes: Sequence[LipSwish]
) -> Mapping[Stage[Any], tuple[Tensor, ...]]:
    """The coefficients of affine maps, by stage, in one operation; empty if that is not possible.

    Args:
        stages: the affine maps.
        swishes: the activations whose gains the affine maps may include.
    """
    layers = cast(list[LipschitzLayer], list(map(attrgetter("layer"), stages)))
    measured = measured_together(layers)
    if measured is None:
        return {}
    known = LipSwish.gains_together(swishes) if swishes else {}
    weights, gains = [], []
    scaled, biases, bias_gains = [], [], []
    for stage, layer in zip(stages, layers, strict=True):
        after = product(stage.after, known) if stage.after else 1.0
        weights.append(layer.weight)
        gains.append(product(stage.before, known) * after if stage.before else after)
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
