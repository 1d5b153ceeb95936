"""Coefficients that are kept from one pass without gradients to the next.

Drawing samples and scoring points take many passes with the same weights. The coefficients of the
usual networks depend on tensors alone, so that they need not be computed again while these keep
their values.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ...fingerprints import Fingerprint
from ..activations import LEARNED_BETAS, LipSwish
from ..lipschitz.divided import Measured
from ..lipschitz.linear import LipschitzLinear
from ..lipschitz.spectral_norm import SpectralNorm

Coefficients = Mapping[int, tuple[Tensor, ...]]


class Dependencies(NamedTuple):
    """The objects that coefficients depend on, if these depend on nothing else.

    Attributes:
        fixed: weights and their measured norms, which a change of the weights replaces.
        tensors: the tensors whose values have to be compared.
    """

    fixed: list[Tensor | Measured]
    tensors: list[Tensor]


class _Kept(NamedTuple):
    fixed: list[Tensor | Measured]
    fingerprint: Fingerprint
    coefficients: Coefficients


_KEPT: MutableMapping[nn.Module, _Kept] = WeakKeyDictionary()
"""The last coefficients of each module that prepares the chains inside it."""


def dependencies(layers: Sequence[nn.Module]) -> Dependencies | None:
    """What the coefficients of layers with current norms depend on; ``None`` if it is not known.

    It is known for :class:`LipschitzLinear` with a spectral norm and :class:`LipSwish`.

    Args:
        layers: all layers of the chains.
    """
    if torch.is_grad_enabled() or torch.is_inference_mode_enabled():
        return None
    fixed: list[Tensor | Measured] = []
    tensors: list[Tensor] = []
    for layer in layers:
        if type(layer) in LEARNED_BETAS:
            tensors.append(cast(LipSwish, layer).raw_beta)
        elif type(layer) is LipschitzLinear and type(layer.norm) is SpectralNorm:
            measured, bias = layer.norm_state.measured, layer.bias
            if measured is None or not isinstance(layer.weight, nn.Parameter):
                return None  # a weight that is replaced for one call has no norm yet
            fixed += layer.weight, measured
            tensors += [] if bias is None else [bias]
        else:
            return None
    return Dependencies(fixed, tensors)


def kept(module: nn.Module, found: Dependencies) -> Coefficients | None:
    """The coefficients of the chains inside a module, by id, if they are still right."""
    last = _KEPT.get(module)
    if last is None or len(last.fixed) != len(found.fixed):
        return None
    for one, other in zip(last.fixed, found.fixed, strict=True):
        if one is not other:
            return None
    return last.coefficients if last.fingerprint.fits(found.tensors) else None


def keep(module: nn.Module, found: Dependencies, coefficients: Coefficients) -> None:
    """Keep the coefficients of the chains inside a module, by id."""
    _KEPT[module] = _Kept(found.fixed, Fingerprint(found.tensors), coefficients)
