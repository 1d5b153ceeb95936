"""The Lipschitz constant that a network is held to, from its coefficients alone."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import nn

from .conditional import ConditionalLipschitzMLP
from .lipschitz.base import LipschitzLayer
from .networks import Chain, DenseConcatenation
from .networks.norms import check_norms_chain


def held_to(network: nn.Module) -> float | None:
    """The Lipschitz constant that a network is held to; ``None`` if it is not known.

    It is the product over the layers: the coefficient of the norm of each linear layer, the bound
    of each activation. Nothing is measured. :func:`check_contraction` certifies it, up to the
    tolerance of the norms.

    Args:
        network: one of the networks of this package, or a chain of layers of your own with a
            method ``lipschitz_bound``.

    Example:
        >>> from pyro_resflow.nn import LipschitzMLP, SpectralNorm
        >>> from pyro_resflow.nn.lipschitz_constant import held_to
        >>> round(held_to(LipschitzMLP(2, [16], norm=SpectralNorm(0.9))), 6)
        0.81
    """
    if isinstance(network, LipschitzLayer):
        return network.norm.coefficient
    if isinstance(network, ConditionalLipschitzMLP):
        return held_to(network.chain)
    if isinstance(network, DenseConcatenation):
        return _of_concatenation(network)
    if isinstance(network, Chain):
        return _of_chain(network)
    bound = getattr(network, "lipschitz_bound", None)
    return float(bound()) if callable(bound) else None


def _of_chain(chain: Chain) -> float | None:
    try:
        check_norms_chain([layer.norm for layer in chain if isinstance(layer, LipschitzLayer)])
    except ValueError:
        return None
    return _product(held_to(layer) for layer in chain)


def _of_concatenation(layer: DenseConcatenation) -> float | None:
    branch = held_to(layer.branch)
    if branch is None or layer.raw_weights.is_meta:
        return None
    first, second = layer.weights().tolist()
    return math.hypot(first, second * branch)


def _product(factors: Iterable[float | None]) -> float | None:
    total = 1.0
    for factor in factors:
        if factor is None:
            return None
        total *= factor
    return total
