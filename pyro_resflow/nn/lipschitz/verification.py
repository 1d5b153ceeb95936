"""Whether what is known of a layer's norm is of the weight that it has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...fingerprints import Fingerprint
from ...precision import full_precision

if TYPE_CHECKING:
    from .base import LipschitzLayer

LOADED_WITHIN = 0.01
"""Relative excess of a norm over what loaded vectors say: as much as training may leave."""


class Seen:
    """A layer's weight and what its norm depends on, at one time.

    Args:
        layer: the layer.
    """

    def __init__(self, layer: LipschitzLayer) -> None:
        self._settings = layer.norm.settings()
        self._fingerprint = Fingerprint(self._tensors_of(layer))

    def still_holds(self, layer: LipschitzLayer) -> bool:
        """Whether nothing has changed."""
        if self._settings != layer.norm.settings():
            return False
        return self._fingerprint.fits(self._tensors_of(layer))

    @staticmethod
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
