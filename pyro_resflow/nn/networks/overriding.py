"""Find out which of the methods by which a network is evaluated a subclass overrides."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from torch import nn

from ...linearization import AutogradNetwork, Linearizable

EVALUATION = "forward", "coefficients", "evaluate", "linearize"
"""The methods by which a network is evaluated."""


def evaluates_as(cls: type, base: type) -> bool:
    """Whether a subclass overrides none of the methods by which its base class is evaluated."""
    return all(getattr(cls, name) is getattr(base, name) for name in EVALUATION)


STAGED = "stages", "core", "affine", "effective_weight"
"""The methods of a layer by which a network evaluates it."""


def overrides_without(cls: type, method: str, *others: str) -> bool:
    """Whether a class overrides a method, and none of the others there or in a subclass.

    Args:
        cls: the class.
        method: the method that may be overridden.
        others: the methods that are meant to compute the same.
    """
    for each in cls.__mro__:
        if any(other in vars(each) for other in others):
            return False
        if method in vars(each):
            return True
    return False


def evaluated_by_itself(net: nn.Module) -> Linearizable:
    """A linearizable network as its own methods evaluate it.

    If it overrides ``forward`` alone, autograd linearizes it, since ``linearize`` would compute
    the function of its base class.
    """
    if overrides_without(type(net), "forward", "linearize"):
        return AutogradNetwork(net)
    return cast(Linearizable, net)


def refuse_ignored_forward(name: str, layers: Iterable[object]) -> None:
    """Raise if a layer overrides ``forward`` alone, because networks evaluate its ``stages``.

    Args:
        name: the argument's name, for the error message.
        layers: the layers.

    Raises:
        ValueError: naming the layer's class.
    """
    for layer in layers:
        if overrides_without(type(layer), "forward", *STAGED):
            raise ValueError(
                f"{name}: expected layers that compute the same by forward and by stages, got a "
                f"{type(layer).__name__}, which overrides forward alone. It would not be called, "
                "because networks of pyro_resflow.nn are evaluated in stages; override stages "
                "too, or core, core_slope and core_curvature of an activation, or the affine map "
                "of a linear layer."
            )
