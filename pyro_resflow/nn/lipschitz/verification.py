"""Whether what is known of a layer's norm is of the weight that it has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...fingerprints import Fingerprint, which_fit
from ...precision import full_precision

if TYPE_CHECKING:
    from .base import LipschitzLayer

LOADED_WITHIN = 0.01
"""Relative excess of a norm over what loaded vectors say: as much as training may leave."""


class Seen:
    """A layer's weight and what its norm depends on, at one time.

    Args:
        layer: the layer.
        fingerprint: that of its tensors, if it has been taken.
    """

    def __init__(self, layer: LipschitzLayer, fingerprint: Fingerprint | None = None) -> None:
        self.settings = layer.norm.settings()
        self.fingerprint = fingerprint or Fingerprint(_tensors_of(layer))


def see(layers: Sequence[LipschitzLayer]) -> list[Seen]:
    """What each of several layers holds now, at about the cost of one."""
    fingerprints = Fingerprint.of_each([_tensors_of(layer) for layer in layers])
    return [Seen(layer, each) for layer, each in zip(layers, fingerprints, strict=True)]


def unchanged(layers: Sequence[LipschitzLayer]) -> list[bool]:
    """Which layers hold what was seen of them last; their values are compared at once."""
    pairs = [(layer, layer._seen) for layer in layers]  # another thread may see it anew meanwhile
    known = [
        (layer, seen.fingerprint)
        for layer, seen in pairs
        if seen is not None and seen.settings == layer.norm.settings()
    ]
    fitting = which_fit([each for _, each in known], [_tensors_of(layer) for layer, _ in known])
    same = {id(layer) for (layer, _), fits in zip(known, fitting, strict=True) if fits}
    return [id(layer) in same for layer in layers]


def _tensors_of(layer: LipschitzLayer) -> list[Tensor]:
    return [layer.weight, *layer.norm.orders()]


@torch.no_grad()
def fit(layer: LipschitzLayer, u: Tensor, v: Tensor) -> bool:
    """Whether loaded vectors are those of the weight, given what the iteration makes of them.

    Then they are kept, so that a run goes on from a file to the last bit.
    """
    if layer.weight.is_meta:
        return True
    norm, operator = layer.norm, layer.measured_operator(layer.weight)
    loaded = layer.u.to(u.dtype), layer.v.to(v.dtype)
    with full_precision(layer.weight):
        before, now = (norm.sigma(operator, *vectors) for vectors in (loaded, (u, v)))
        within = abs(now - before) <= LOADED_WITHIN * before
        return bool(within) and norm.belong(operator, *loaded)
