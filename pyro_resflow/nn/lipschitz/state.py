"""What a layer knows of its norm, and of which weight it knows it."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from ...fingerprints import Fingerprint, which_fit
from .divided import Measured
from .operator_norm import OperatorNorm
from .operators import LinearOperator

_KEYS = itertools.count()
_LAYERS: weakref.WeakValueDictionary[int, NormedLayer] = weakref.WeakValueDictionary()


class NonFiniteWeightError(ValueError):
    """A weight holds nan, or values that are infinite or too large to be squared."""


class NormedLayer(nn.Module):
    """A layer whose weight has a norm that is measured: all that :mod:`.update` asks of it."""

    weight: nn.Parameter
    norm: OperatorNorm
    norm_state: NormState
    u: Tensor
    v: Tensor
    """The vectors of the norm's iteration, of outputs and of inputs. For a spectral norm they are
    singular vectors: one has length 1, the other the length of the norm."""

    def measured_operator(self, weight: Tensor) -> LinearOperator:
        """The linear map whose norm is measured, for a weight of this layer's shape."""
        raise NotImplementedError

    def kind(self) -> tuple[Any, ...]:
        """A key that is equal for layers whose norms can be measured together."""
        weight = self.weight
        channels = tuple(sorted(weight.shape[:2]))
        sides = tuple(sorted((self.u.shape, self.v.shape)))
        like = (type(self), channels, weight.shape[2:], sides, weight.dtype, weight.device)
        return (*like, *self.norm.kind())

    def check_finite(self) -> None:
        """Raise if the weight holds nan, or values that are infinite or too large to be squared.

        Raises:
            NonFiniteWeightError: naming the layer.
        """
        if not self.weight.is_meta and not bool(self.weight.square().sum().isfinite()):
            raise NonFiniteWeightError(
                f"weight of {type(self).__name__} of shape {tuple(self.weight.shape)}: its norm "
                "cannot be measured, for it holds values that are nan, infinite or too large. Go "
                "back to an earlier state."
            )


class Seen(NamedTuple):
    """All that a norm depends on, at the time when it was measured."""

    settings: tuple[object, ...]
    fingerprint: Fingerprint


class NormState:
    """What is known of a layer's norm, and of which weight.

    The layer is passed in at each call, not kept: a state belongs to one layer, and a copy of the
    layer makes a state of its own.

    Args:
        layer: the layer.

    Attributes:
        key: a number by which :func:`layer_of` finds the layer.
        seen: all that the norm depends on, as it was when the norm was measured.
        measured: the norm's value and gradient, ``None`` until they are needed.
        arrived: whether weight and vectors were loaded together, and nobody has looked yet
            whether they fit.
    """

    __slots__ = ("arrived", "key", "measured", "seen")

    def __init__(self, layer: NormedLayer) -> None:
        self.key = next(_KEYS)
        _LAYERS[self.key] = layer
        self.measured: Measured | None = None
        self.arrived = False
        self.seen: Seen | None = None

    def is_current(self, layer: NormedLayer) -> bool:
        """Whether the vectors belong to the weight, and to the orders of the norm, as they are."""
        return not out_of_date([layer])

    def trust(self, layer: NormedLayer) -> None:
        """Take the layer's vectors as those of its weight as it is, without measuring."""
        trust([layer])

    def forget(self) -> None:
        """Take the vectors as those of another weight."""
        self.measured = self.seen = None

    def load(self, is_complete: bool) -> None:
        """Note that a state has been loaded.

        Args:
            is_complete: whether it held the weight and its vectors, which then may still fit each
                other, unless the weight has been averaged or scaled.
        """
        self.forget()
        self.arrived = is_complete


def out_of_date(layers: Sequence[NormedLayer]) -> list[NormedLayer]:
    """The layers that are not current, by one comparison of all of them as a rule."""
    known: list[NormedLayer] = []
    fingerprints: list[Fingerprint] = []
    dependencies: list[list[Tensor]] = []
    for layer in layers:
        seen = layer.norm_state.seen  # once: another thread may write to it
        if seen is not None and seen.settings == layer.norm.settings():
            known.append(layer)
            dependencies.append([layer.weight, *layer.norm.orders()])
            fingerprints.append(seen.fingerprint)
    fitting = which_fit(fingerprints, dependencies)
    if all(fitting) and len(known) == len(layers):
        return []
    current = {id(layer) for layer, fits in zip(known, fitting, strict=True) if fits}
    return [layer for layer in layers if id(layer) not in current]


def trust(layers: Sequence[NormedLayer]) -> None:
    """:meth:`NormState.trust` for several layers, at about the cost of one."""
    dependencies = [[layer.weight, *layer.norm.orders()] for layer in layers]
    fingerprints = Fingerprint.of_each(dependencies)
    for layer, fingerprint in zip(layers, fingerprints, strict=True):
        state = layer.norm_state
        state.measured, state.arrived = None, False
        state.seen = Seen(layer.norm.settings(), fingerprint)  # last: other threads look first


def layer_of(key: int) -> NormedLayer:
    """The layer with a key, which a compiled function holds in the layer's place."""
    return _LAYERS[key]
