"""A certified check that networks are contractions."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from .lipschitz.layer import LipschitzLayer
from .networks import Chain, GatedLipschitzMLP


def check_contraction(module: nn.Module) -> None:
    """Raise unless every network of Lipschitz layers in ``module`` is a certified contraction.

    Args:
        module: any module that contains networks of :mod:`pyro_resflow.nn`, a flow for instance.

    Raises:
        ValueError: naming the layer that exceeds its coefficient most, with its certified bound;
            or if there is no network to certify.

    Example:
        >>> from pyro_resflow import residual_flow
        >>> from pyro_resflow.nn import check_contraction
        >>> check_contraction(residual_flow(2))  # raises no error
    """
    networks = list(_outermost_networks(module))
    if not networks:
        raise ValueError(
            "module: expected a module with networks of pyro_resflow.nn, got one without; other "
            "networks cannot be certified."
        )
    for name, network in networks:
        bound = float(network.lipschitz_bound())
        if not bound < 1:
            layers = _lipschitz_layers(network)
            if not layers:
                raise ValueError(
                    f"network {name or type(network).__name__!r}: its Lipschitz constant is "
                    f"certified to at most {bound:.4f} only. Its activations, or layers of your "
                    "own, have a lipschitz_bound() that is too large; divide them by it."
                )
            layer_name, layer = max(layers, key=lambda item: _excess(item[1]))
            path = ".".join(part for part in (name, layer_name) if part)
            raise ValueError(
                f"network {name or type(network).__name__!r}: its Lipschitz constant is certified "
                f"to at most {bound:.4f} only. The layer that exceeds its coefficient "
                f"{layer.norm.coefficient} most is {path!r}, with "
                f"{float(layer.lipschitz_bound()):.4f}. If its iteration has not converged, lower "
                "the `tolerance` of its norm. If the norm was loaded from a file, any change of "
                "the weight makes the layer measure it again."
            )


def _outermost_networks(
    module: nn.Module, name: str = ""
) -> Iterator[tuple[str, Chain | GatedLipschitzMLP]]:
    if isinstance(module, Chain | GatedLipschitzMLP):
        yield name, module
        return
    for child_name, child in module.named_children():
        yield from _outermost_networks(child, f"{name}.{child_name}" if name else child_name)


def _lipschitz_layers(network: nn.Module) -> list[tuple[str, LipschitzLayer]]:
    return [(n, m) for n, m in network.named_modules() if isinstance(m, LipschitzLayer)]


def _excess(layer: LipschitzLayer) -> float:
    return float(layer.lipschitz_bound()) / layer.norm.coefficient
