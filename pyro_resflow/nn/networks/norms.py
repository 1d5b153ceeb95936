"""One norm for each layer of a network, so that their product bounds the whole network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..lipschitz.induced_norm import InducedNorm
from ..lipschitz.infinity_norm import InfinityNormLinear
from ..lipschitz.layer import LipschitzLayer
from ..lipschitz.operator_norm import OperatorNorm
from ..lipschitz.spectral_norm import SpectralNorm

Norms = OperatorNorm | Sequence[OperatorNorm] | None
"""One norm for all layers, one for each, or the default."""


def norm_per_layer(norm: Norms, layers: int, *, concatenates: bool = False) -> list[OperatorNorm]:
    """One norm for each linear layer of a network.

    Args:
        norm: one norm for all layers, one for each, or ``None`` for ``SpectralNorm()``.
        layers: number of linear layers.
        concatenates: whether features are concatenated between the layers.

    Raises:
        ValueError: if the number of norms is not the number of layers, or if the product of
            induced norms does not bound the whole network.
    """
    if norm is None or isinstance(norm, OperatorNorm):
        norms = [norm if norm is not None else SpectralNorm()] * layers
    else:
        norms = list(norm)
    if len(norms) != layers:
        raise ValueError(f"norm: expected one norm for each of {layers} layers, got {len(norms)}.")
    if concatenates and any(isinstance(each, InducedNorm) for each in norms):
        raise ValueError(
            "norm: expected spectral norms, got an InducedNorm. The bound of a concatenation "
            "holds for the Euclidean norm only; use SpectralNorm, or an activation that does not "
            "concatenate."
        )
    check_norms_chain(norms)
    return norms


def check_norms_chain(norms: Sequence[OperatorNorm]) -> None:
    """Raise unless the product of the norms of linear layers bounds their composition.

    Raises:
        ValueError: if the second order of an induced norm is not the first one of the next norm,
            where the first norm follows the last one.
    """
    if not any(isinstance(each, InducedNorm) for each in norms):
        return
    for first, second in zip(norms, [*norms[1:], norms[0]], strict=True):
        if not (
            isinstance(first, InducedNorm)
            and isinstance(second, InducedNorm)
            and first.codomain_logit is second.domain_logit
        ):
            raise ValueError(
                "norm: expected induced norms whose orders are shared by neighbouring layers, and "
                "by the last and the first layer, got separate orders; make the norms with "
                f"InducedNorm.chain({len(norms)})."
            )


def check_one_norm(network: nn.Module) -> None:
    """Raise if a network mixes layers that bound the infinity norm with layers of other norms.

    Raises:
        ValueError: naming the two kinds of layers.
    """
    bounded = [each for each in network.modules() if isinstance(each, InfinityNormLinear)]
    others = [each for each in network.modules() if isinstance(each, LipschitzLayer)]
    if bounded and others:
        raise ValueError(
            "layers: expected layers that bound one norm, got InfinityNormLinear beside "
            f"{type(others[0]).__name__}. The product of their bounds bounds nothing; use "
            "InfinityNormLinear for all linear layers, or for none."
        )
