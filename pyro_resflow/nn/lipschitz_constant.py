"""The nominal Lipschitz constant of a network, from its layers' coefficients."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import nn

from .conditional import ConditionalChain
from .lipschitz.infinity_norm import InfinityNormLinear
from .lipschitz.layer import LipschitzLayer
from .networks import Chain, DenseConcatenation, GatedLipschitzMLP
from .networks.norms import check_norms_chain, check_one_norm


def nominal_lipschitz_constant(network: nn.Module) -> float | None:
    """The Lipschitz constant that a network's coefficients impose; ``None`` if it is not known.

    It is the product of the coefficient of each linear layer's norm and the bound of each
    activation. No norm is measured. :func:`check_contraction` certifies the constant, up to the
    tolerance of the norms.

    Args:
        network: a network of this package, or a chain of your own layers with a method
            ``lipschitz_bound``.

    Example:
        >>> from pyro_resflow.nn import LipschitzMLP, SpectralNorm
        >>> from pyro_resflow.nn.lipschitz_constant import nominal_lipschitz_constant
        >>> round(nominal_lipschitz_constant(LipschitzMLP(2, [16], norm=SpectralNorm(0.9))), 6)
        0.81
    """
    if isinstance(network, LipschitzLayer):
        return network.norm.coefficient
    if isinstance(network, InfinityNormLinear):
        return network.coefficient
    if isinstance(network, GatedLipschitzMLP):
        branch = nominal_lipschitz_constant(network.branch)
        return None if branch is None else network.coefficient * max(1.0, branch)
    if isinstance(network, ConditionalChain):
        return nominal_lipschitz_constant(network.chain)
    if isinstance(network, DenseConcatenation):
        return _of_concatenation(network)
    if isinstance(network, Chain):
        return _of_chain(network)
    bound = getattr(network, "lipschitz_bound", None)
    return float(bound()) if callable(bound) else None


def _of_chain(chain: Chain) -> float | None:
    try:
        check_norms_chain([layer.norm for layer in chain if isinstance(layer, LipschitzLayer)])
        check_one_norm(chain)
    except ValueError:
        return None
    return _product(nominal_lipschitz_constant(layer) for layer in chain)


def _of_concatenation(layer: DenseConcatenation) -> float | None:
    branch = nominal_lipschitz_constant(layer.branch)
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
