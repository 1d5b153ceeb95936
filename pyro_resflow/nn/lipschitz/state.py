"""The state of a layer's norm: whether it is up to date, and its measured value and gradient."""

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
    """A layer whose weight has a measured norm: the interface that :mod:`.update` uses."""

    buffers_follow_parameters = True
    """A pass depends on the buffers, the vectors u and v, only through the weight."""

    weight: nn.Parameter
    norm: OperatorNorm
    norm_state: NormState
    u: Tensor
    v: Tensor
    """The vectors of the norm's iteration, u of outputs and v of inputs. For a spectral norm they
    are singular vectors: one has length 1, and the length of the other is the norm."""

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
                f"weight of {type(self).__name__} of shape {tuple(self.weight.shape)}: expected "
                "finite values, got some that are nan, infinite or too large, so that the norm "
                "cannot be measured; go back to an earlier state."
            )


class Seen(NamedTuple):
    """The settings and a fingerprint of the tensors that a norm was measured with."""

    settings: tuple[object, ...]
    fingerprint: Fingerprint


class NormState:
    """Whether a layer's measured norm is up to date, and its value and gradient.

    A state belongs to one layer but does not hold it: each method takes the layer as an argument,
    and a copy of the layer makes its own state.

    Args:
        layer: the layer.

    Attributes:
        key: a number by which :func:`layer_of` finds the layer.
        seen: the settings and tensors that the norm was measured with, ``None`` if there are none.
        measured: the contraction factor and the norm's gradient, ``None`` until they are needed.
        arrived: whether weight and vectors have been loaded together, and not yet been checked
            against each other.
    """

    __slots__ = ("arrived", "key", "measured", "seen")

    def __init__(self, layer: NormedLayer) -> None:
        self.key = next(_KEYS)
        _LAYERS[self.key] = layer
        self.measured: Measured | None = None
        self.arrived = False
        self.seen: Seen | None = None

    def is_current(self, layer: NormedLayer) -> bool:
        """Whether the vectors belong to the current weight, orders and settings of the norm."""
        return not out_of_date([layer])

    def trust(self, layer: NormedLayer) -> None:
        """Accept the layer's vectors as those of its current weight, without measuring."""
        trust([layer])

    def forget(self) -> None:
        """Treat the vectors as those of another weight; the next use measures the norm."""
        self.measured = self.seen = None

    def load(self, is_complete: bool) -> None:
        """Record that a state dict has been loaded.

        Args:
            is_complete: whether it held the weight and both vectors. These then fit each other,
                unless the weight has been averaged or scaled.
        """
        self.forget()
        self.arrived = is_complete


def out_of_date(layers: Sequence[NormedLayer]) -> list[NormedLayer]:
    """The layers that are not current; usually one comparison serves all of them."""
    known: list[NormedLayer] = []
    fingerprints: list[Fingerprint] = []
    dependencies: list[list[Tensor]] = []
    for layer in layers:
        seen = layer.norm_state.seen  # read once: another thread may write to it
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
        state.seen = Seen(layer.norm.settings(), fingerprint)  # last: other threads read it first


def layer_of(key: int) -> NormedLayer:
    """The layer with a given key. A compiled function holds the key, not the layer."""
    return _LAYERS[key]
