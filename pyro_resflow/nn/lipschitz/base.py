r"""What layers held to a Lipschitz constant share, and how their norms are kept up to date.

A layer's effective weight is :math:`W / \max(1, \sigma(W)/c)`: weights of norm below c pass
unchanged. The iteration that measures the norm runs by itself, once, when the weight has changed;
until it changes again every pass sees the same effective weight.
"""

from __future__ import annotations

import itertools
import math
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, library, nn

from ...differentiation import (
    differentiable_once,
    is_transformed,
    outside_torch_func,
    torch_func_is_active,
)
from ...precision import HalfPrecisionError, full_precision, refuse_half_precision
from ...rebuilding import Rebuildable
from ...tracing import tracing_state, untraced
from ...walk import modules_inside
from ..stages.base import Affine, Stage
from .divided import REMEDY, DividedByNorm, Measured
from .norms import OperatorNorm, SpectralNorm
from .operators import LinearOperator
from .verification import Seen, fit, see, unchanged

_UPDATE_LOCK = threading.RLock()
_KEYS = itertools.count()
_UPDATED: ContextVar[frozenset[int]] = ContextVar("updated", default=frozenset())
"""The keys of layers that a pass around has updated."""
_LAYERS: weakref.WeakValueDictionary[int, LipschitzLayer] = weakref.WeakValueDictionary()


class NonFiniteWeightError(ValueError):
    """A weight holds nan, or values that are infinite or too large to be squared."""


class LipschitzLayer(Rebuildable, nn.Module):
    """What a linear layer held to a Lipschitz constant shares with the next.

    Args:
        weight_shape: shape of the weight, output features first.
        domain_size: number of entries of one input.
        codomain_size: number of entries of one output.
        norm: the norm and coefficient that the layer is held to.
        bias: whether the layer has a bias, one per output feature.
    """

    u: Tensor
    v: Tensor
    """The vectors of the norm's iteration, of outputs and inputs; of a spectral norm the singular
    vectors, one of them as long as the norm."""

    def __init__(
        self,
        weight_shape: tuple[int, ...],
        domain_size: int,
        codomain_size: int,
        norm: OperatorNorm,
        bias: bool,
    ) -> None:
        super().__init__()
        self.norm = norm
        self.weight = nn.Parameter(torch.empty(weight_shape))
        self.bias = nn.Parameter(torch.empty(weight_shape[0])) if bias else None
        self.register_buffer("u", torch.empty(codomain_size))
        self.register_buffer("v", torch.empty(domain_size))
        self._seen: Seen | None = None
        self._loaded = False
        self._measured: Measured | None = None
        self._enter_register()
        self.reset_parameters()

    def _enter_register(self) -> None:
        self._key = next(_KEYS)
        _LAYERS[self._key] = self

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weight, the bias and the vectors of the iteration anew."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)
        self.u.normal_()
        self.v.normal_()

    def operator(self, weight: Tensor) -> LinearOperator:
        """The linear map that a weight stands for."""
        raise NotImplementedError

    def measured_operator(self, weight: Tensor) -> LinearOperator:
        """A linear map of the same norm, on which it is measured."""
        return self.operator(weight)

    def kind(self) -> tuple[Any, ...]:
        """What layers have in common whose norms are measured together."""
        weight = self.weight
        channels = tuple(sorted(weight.shape[:2]))
        sides = tuple(sorted((self.u.shape, self.v.shape)))
        like = (type(self), channels, weight.shape[2:], sides, weight.dtype, weight.device)
        return (*like, *self.norm.kind())

    @property
    def is_current(self) -> bool:
        """Whether the iteration has seen the weight, and the orders of its norm, as they are."""
        return unchanged([self])[0]

    @torch.no_grad()
    def update(self) -> None:
        """Run the norm's iteration if the weight has changed since it last ran.

        Raises:
            NonFiniteWeightError: if the weight holds nan or infinite values.
        """
        if torch_func_is_active():
            outside_torch_func(self.update)
        elif self._key not in _UPDATED.get() and not self.is_current:
            update_norms(self)

    def trust_vectors(self) -> None:
        """Take the vectors as those of the weight as it is, unmeasured."""
        _trust([self])

    def check_finite(self) -> None:
        """Raise if the weight holds nan, or values that are infinite or too large to be squared.

        Raises:
            NonFiniteWeightError: naming the layer.
        """
        if not self.weight.is_meta and not bool(self.weight.square().sum().isfinite()):
            raise NonFiniteWeightError(
                f"weight of {type(self).__name__} of shape {tuple(self.weight.shape)}: no norm "
                "can be measured, it holds nan or infinite or too large values. Go back to an "
                "earlier state."
            )

    def sigma(self) -> Tensor:
        """The measured norm of the raw weight, a scalar, with gradient."""
        if isinstance(self.weight, nn.Parameter):
            with _UPDATE_LOCK:
                self.update()
                u, v = self.u.clone(), self.v.clone()
        else:
            # put in our weight's place for one call, as functional_call does: the vectors that
            # belong to our own weight stay as they are
            ((u, v),) = iterated([self])
        with full_precision(self.weight):
            sigma = self.norm.sigma(self.measured_operator(self.weight), u, v)
        return differentiable_once(sigma, REMEDY)  # u and v count as constants

    def effective_weight(self, gain: Tensor | float = 1.0) -> Tensor:
        """The weight divided by max(1, sigma/c), same shape as the weight.

        Args:
            gain: a scalar to multiply it by.
        """
        norm = self.norm
        if torch.compiler.is_compiling() or tracing_state() is not None:
            u, v = _current_vectors(self.weight.detach(), self._key)
            with torch.autocast(self.weight.device.type, enabled=False):
                sigma = norm.sigma(self.measured_operator(self.weight), u, v)
            if isinstance(norm, SpectralNorm):  # compiled products may be in TF32, lengths are not
                sigma = sigma + (norm.value(u, v) - sigma).detach()
            return self.weight * (self._contraction(sigma) * gain)
        if not isinstance(self.weight, nn.Parameter) or not isinstance(norm, SpectralNorm):
            return self.weight * (self._contraction(self.sigma()) * gain)
        self.update()
        measured = self._measured  # another thread's update may take it away at any moment
        if measured is None:
            measured = self._measured_now()
        if not torch.is_grad_enabled():
            return self.weight * (measured.contraction * gain)
        if self.weight.is_inference():
            raise ValueError(
                f"weight of {type(self).__name__} of shape {tuple(self.weight.shape)}: it was "
                "made under torch.inference_mode, and nothing made there can be differentiated; "
                "build the flow outside of it, or evaluate this one under torch.no_grad()."
            )
        return DividedByNorm.apply(measured, self.weight, gain)

    def _measured_now(self) -> Measured:
        with _UPDATE_LOCK:
            if self._measured is None:
                outside_torch_func(self._measure)
            assert self._measured is not None  # for the type checker
            return self._measured

    def _measure(self) -> None:
        (self._measured,) = _measured([self])

    def _contraction(self, sigma: Tensor) -> Tensor:
        c = self.norm.coefficient
        return c / sigma.clamp_min(c)

    @torch.no_grad()
    def lipschitz_bound(self) -> Tensor:
        """A certified upper bound of the effective weight's norm, a scalar."""
        with full_precision(self.weight):
            return self.norm.upper_bound(self.measured_operator(self.effective_weight()))

    def affine(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The layer's map with a weight and a bias in place of its own."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.affine(x, self.effective_weight(), self.bias)

    def stages(self) -> list[Stage]:
        """One affine map."""
        return [Affine(self)]

    # The vectors that go with a weight travel with it: a copy and a moved layer take them as they
    # are, so that they compute what the original computed. Those of a loaded state may be of
    # another weight, if it has been averaged or scaled; the first update looks whether they fit.

    def __getstate__(self) -> dict[str, object]:
        state = self.__dict__.copy()
        state.update(_seen=None, _measured=None)
        state["_current"] = self.is_current
        return state

    def __setstate__(self, state: dict[str, object]) -> None:
        state = dict(state)
        current = bool(state.pop("_current"))
        super().__setstate__(state)
        self._enter_register()
        if current:
            self.trust_vectors()

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        current = self.is_current and not self.weight.is_meta
        super()._apply(fn, recurse)
        self._seen = self._measured = None
        if current:
            self.trust_vectors()
        return self

    def _save_to_state_dict(self, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        # what cannot be used, having diverged for instance, can be saved all the same
        with suppress(NonFiniteWeightError, HalfPrecisionError):
            self.update()
        super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._seen = self._measured = None
        self._loaded = all(prefix + name in state_dict for name in ("weight", "u", "v"))


@library.custom_op("pyro_resflow::current_vectors", mutates_args=())
def _current_vectors(weight: Tensor, key: int) -> tuple[Tensor, Tensor]:
    """A layer's vectors, updated; opaque to a compiler, so that it runs at each call."""
    layer = _LAYERS[key]
    layer.update()
    return layer.u.clone(), layer.v.clone()


@_current_vectors.register_fake
def _(weight: Tensor, key: int) -> tuple[Tensor, Tensor]:
    layer = _LAYERS[key]
    return weight.new_empty(layer.u.shape), weight.new_empty(layer.v.shape)


@torch.no_grad()
def update_norms(module: nn.Module) -> None:
    """Measure the norms of all weights in a module that have changed, those of one shape together.

    It happens by itself where a weight is used; to call it for a whole flow first saves time.

    Args:
        module: any module.

    Raises:
        NonFiniteWeightError: if a weight holds nan or infinite values.
    """
    if torch_func_is_active():
        outside_torch_func(partial(update_norms, module))
        return
    with _UPDATE_LOCK, untraced():
        groups: dict[tuple[Any, ...], list[LipschitzLayer]] = {}
        inside = _layers_inside(module)
        for layer, current in zip(inside, unchanged(inside), strict=True):
            if not current:
                groups.setdefault(layer.kind(), []).append(layer)
        for layers in groups.values():
            _update(layers)


@contextmanager
def norms_updated(module: nn.Module) -> Iterator[None]:
    """A context, of one pass, whose layers do not look again whether their weights have changed.

    Args:
        module: any module; the norms inside it are measured first, where they have to be.
    """
    update_norms(module)
    inside = (layer._key for layer in _layers_inside(module))
    token = _UPDATED.set(_UPDATED.get().union(inside))
    try:
        yield
    finally:
        _UPDATED.reset(token)


def _layers_inside(module: nn.Module) -> list[LipschitzLayer]:
    """Those with a weight of their own: none that is put in its place for a call."""
    return [
        layer
        for layer in modules_inside(module)
        if isinstance(layer, LipschitzLayer) and isinstance(layer.weight, nn.Parameter)
    ]


def trust_norms(module: nn.Module) -> None:
    """Take the norms of all weights in a module as those that were loaded with them, unmeasured.

    Args:
        module: any module.
    """
    _trust([layer for layer in module.modules() if isinstance(layer, LipschitzLayer)])


def _trust(layers: Sequence[LipschitzLayer]) -> None:
    """Take the vectors as those of the weights as they are, unmeasured."""
    for layer, seen in zip(layers, see(layers), strict=True):
        layer._measured, layer._loaded = None, False
        layer._seen = seen  # last, for other threads look at it first


def _update(layers: Sequence[LipschitzLayer]) -> None:
    """Measure the norms of layers of one kind, and what effective weights need of them."""
    found = iterated(layers)
    changed = [
        (layer, *vectors)
        for layer, vectors in zip(layers, found, strict=True)
        if not (layer._loaded and fit(layer, *vectors))
    ]
    if changed:
        written, us, vs = zip(*changed, strict=True)
        held = [*(layer.u for layer in written), *(layer.v for layer in written)]
        # tensors that were made in inference mode can be written to in no other
        with torch.inference_mode() if held[0].is_inference() else nullcontext():
            torch._foreach_copy_(held, [*us, *vs])
    _trust(layers)
    if isinstance(layers[0].norm, SpectralNorm):
        for layer, measured in zip(layers, _measured(layers), strict=True):
            layer._measured = measured


@torch.no_grad()
def iterated(layers: Sequence[LipschitzLayer]) -> list[tuple[Tensor, Tensor]]:
    """The vectors of the iteration for the weights, of one shape, as they are now.

    Raises:
        NonFiniteWeightError: if a weight holds nan or infinite values.
    """
    refuse_half_precision(layers[0])
    # no_grad stops no tangents, and of the vectors the norm's derivative takes none
    weights = [w.detach() if is_transformed(w) else w for w in (each.weight for each in layers)]
    operators = [
        layer.measured_operator(weight) for layer, weight in zip(layers, weights, strict=True)
    ]
    us = [layer.u.to(layer.weight.dtype) for layer in layers]
    vs = [layer.v.to(layer.weight.dtype) for layer in layers]
    try:
        with full_precision(weights[0]):
            found = layers[0].norm.iterate_together(operators, us, vs)
        if not weights[0].is_meta:
            _check_lengths(found)
        return found
    except RuntimeError:  # of the small eigenvalue problem too
        for layer in layers:
            layer.check_finite()
        raise


def _check_lengths(found: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Raise a RuntimeError if a vector of an iteration has no length in its type."""
    lengths = torch.stack([torch.linalg.vector_norm(x) for pair in found for x in pair])
    if not bool(lengths.isfinite().all()):
        raise RuntimeError("a norm is not finite")


@torch.inference_mode(False)
@torch.no_grad()
def _measured(layers: Sequence[LipschitzLayer]) -> list[Measured]:
    """What effective weights need of the vectors found for layers of one kind, spectral norms."""
    norm = layers[0].norm
    assert isinstance(norm, SpectralNorm)  # for the type checker
    with _UPDATE_LOCK, full_precision(layers[0].weight):
        operators = [layer.measured_operator(layer.weight) for layer in layers]
        found = norm.measured(operators, [each.u for each in layers], [each.v for each in layers])
    return [
        measured._replace(gradient=measured.gradient.view(layer.weight.shape))
        for layer, measured in zip(layers, found, strict=True)
    ]
