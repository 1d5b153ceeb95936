"""Measure the norms of layers whose weights have changed, those of one shape together.

Every use of a weight checks whether its norm is up to date. :func:`update_norms` measures all
norms of a module at once, which saves time, and :func:`norms_updated` checks once for a pass.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, library, nn

from ...differentiation import (
    is_mapped,
    is_transformed,
    outside_torch_func,
    torch_func_is_active,
)
from ...precision import full_precision, refuse_half_precision
from ...tracing import tracing_state, untraced
from ...walk import modules_inside
from .divided import Measured
from .spectral_norm import SingularVectors, SpectralNorm
from .state import NormedLayer, layer_of, out_of_date, trust

LOADED_WITHIN = 0.01
"""Largest relative difference between a norm and its value at loaded vectors that are kept. One
training step changes a norm by less; the vectors of another weight miss it by more."""

_UPDATE_LOCK = threading.RLock()

_UPDATED: ContextVar[frozenset[int]] = ContextVar("updated", default=frozenset())
"""The keys of layers that an enclosing pass has updated."""


def update_norms(module: nn.Module) -> None:
    """Measure the norms of all changed weights in a module, those of one shape together.

    Every use of a weight does this for its own norm. Calling this function first, for a whole
    flow, saves time.

    Args:
        module: any module.

    Raises:
        NonFiniteWeightError: if a weight holds nan or infinite values.
    """
    update_layers(_with_own_weight(modules_inside(module)))


def update_layers(layers: Sequence[NormedLayer]) -> None:
    """:func:`update_norms` for layers whose weights are their own parameters."""
    if torch_func_is_active():
        outside_torch_func(partial(update_layers, layers))
        return
    with untraced():
        _update_changed(layers)


@torch.no_grad()
def _update_changed(layers: Sequence[NormedLayer]) -> None:
    """Measure the norms that are out of date, outside of traces and transforms."""
    with _UPDATE_LOCK:
        groups: dict[tuple[Any, ...], list[NormedLayer]] = {}
        for layer in out_of_date(layers):
            groups.setdefault(layer.kind(), []).append(layer)
        written: list[SingularVectors | None] = []
        for group in groups.values():
            written.append(_write_vectors(group))
        if groups:
            trust([layer for group in groups.values() for layer in group])
        for group, found in zip(groups.values(), written, strict=True):
            if isinstance(group[0].norm, SpectralNorm):
                for layer, measured in zip(group, _measured(group, found), strict=True):
                    layer.norm_state.measured = measured


def update_layer(layer: NormedLayer) -> None:
    """Measure a layer's norm if its weight has changed, unless an enclosing pass has done so.

    Args:
        layer: a layer whose weight is its own parameter.

    Raises:
        NonFiniteWeightError: if the weight holds nan or infinite values.
    """
    if layer.norm_state.key not in _UPDATED.get():
        update_layers([layer])


def norms_updated(module: nn.Module) -> AbstractContextManager[None]:
    """A context for one pass, in which layers do not check again whether their weights changed.

    Args:
        module: any module. Norms inside it that are out of date are measured first.
    """
    return layers_updated(modules_inside(module))


@contextmanager
def layers_updated(layers: Iterable[object]) -> Iterator[None]:
    """:func:`norms_updated` for the objects that are layers with their own parameter as weight."""
    updated = _UPDATED.get()
    mine: dict[int, NormedLayer] = {}
    for layer in layers:
        if isinstance(layer, NormedLayer) and isinstance(layer.weight, nn.Parameter):
            mine[layer.norm_state.key] = layer
    if mine.keys() <= updated or torch.compiler.is_compiling() or tracing_state() is not None:
        yield  # in compiled and traced code each layer checks, by an operation
        return
    update = update_layers if torch_func_is_active() else _update_changed
    update([*mine.values()])
    token = _UPDATED.set(updated.union(mine))
    try:
        yield
    finally:
        _UPDATED.reset(token)


def trust_norms(module: nn.Module) -> None:
    """Accept the vectors of all layers in a module as those of their weights, without measuring.

    Args:
        module: any module.
    """
    trust([layer for layer in module.modules() if isinstance(layer, NormedLayer)])


def updated_vectors(layer: NormedLayer) -> tuple[Tensor, Tensor]:
    """Copies of a layer's vectors u and v, up to date."""
    with _UPDATE_LOCK:
        update_layer(layer)
        return layer.u.clone(), layer.v.clone()


def updated_measured(layer: NormedLayer) -> Measured:
    """The contraction factor of a layer and the gradient of its spectral norm, up to date."""
    if layer.norm_state.key not in _UPDATED.get():
        update_layers([layer])
    measured = layer.norm_state.measured  # another thread's update may reset it at any moment
    if measured is not None:
        return measured
    with _UPDATE_LOCK:
        if layer.norm_state.measured is None:
            outside_torch_func(partial(_measure, layer))
        assert layer.norm_state.measured is not None  # for the type checker
        return layer.norm_state.measured


def _measure(layer: NormedLayer) -> None:
    (layer.norm_state.measured,) = _measured([layer])


# torch before 2.5 cannot infer a schema from annotations that are not evaluated.
@library.custom_op(
    "pyro_resflow::current_vectors",
    mutates_args=(),
    schema="(Tensor weight, SymInt key) -> (Tensor, Tensor)",
)
def recorded_vectors(weight: Tensor, key: int) -> tuple[Tensor, Tensor]:
    """:func:`updated_vectors` as one operation, which compiled and traced code runs each time.

    Args:
        weight: the layer's weight, an argument so that the operation depends on it.
        key: the layer's key.
    """
    return updated_vectors(layer_of(key))


@recorded_vectors.register_fake
def _(weight: Tensor, key: int) -> tuple[Tensor, Tensor]:
    layer = layer_of(key)
    return weight.new_empty(layer.u.shape), weight.new_empty(layer.v.shape)


def _with_own_weight(modules: Iterable[object]) -> list[NormedLayer]:
    """The layers among modules, without those whose weight is replaced for one call."""
    return [
        module
        for module in modules
        if isinstance(module, NormedLayer) and isinstance(module.weight, nn.Parameter)
    ]


def _write_vectors(layers: Sequence[NormedLayer]) -> SingularVectors | None:
    """Write the vectors that the iteration finds to layers of one kind.

    Returns:
        The singular vectors, if these are what the layers hold now.
    """
    found = iterated(layers)
    changed = [
        (layer, *vectors)
        for layer, vectors in zip(layers, found, strict=True)
        if not (layer.norm_state.arrived and _loaded_vectors_fit(layer, *vectors))
    ]
    if changed:
        written, us, vs = zip(*changed, strict=True)
        held = [*(layer.u for layer in written), *(layer.v for layer in written)]
        # inference tensors can only be written to in inference mode
        with torch.inference_mode() if held[0].is_inference() else nullcontext():
            torch._foreach_copy_(held, [*us, *vs])
    if not isinstance(found, SingularVectors) or len(changed) < len(layers):
        return None
    if getattr(type(layers[0].norm), "measured", None) is not SpectralNorm.measured:
        return None  # a subclass measures by itself
    # results of inference mode could not be saved for a backward pass
    return None if found.near.is_inference() or layers[0].u.dtype != found.near.dtype else found


@torch.no_grad()
def iterated(layers: Sequence[NormedLayer]) -> Sequence[tuple[Tensor, Tensor]]:
    """The vectors that the iteration finds for the current weights; the layers' own do not change.

    Args:
        layers: layers of one kind.

    Raises:
        NonFiniteWeightError: if a weight holds nan or infinite values.
        ValueError: for weights that ``torch.func.vmap`` maps over.
    """
    refuse_half_precision(layers[0])
    if is_mapped(layers[0].weight):
        raise ValueError(
            f"weight of {type(layers[0]).__name__}: expected one weight, got a batch that "
            "torch.func.vmap maps over, as it does after stack_module_state. The iteration that "
            "measures norms depends on values, which vmap does not support; call functional_call "
            "in a loop, once for each set of weights."
        )
    # no_grad does not stop tangents, and the derivative of the norm takes u and v as constants
    weights = [w.detach() if is_transformed(w) else w for w in (each.weight for each in layers)]
    operators = [
        layer.measured_operator(weight) for layer, weight in zip(layers, weights, strict=True)
    ]
    us = [layer.u.to(layer.weight.dtype) for layer in layers]
    vs = [layer.v.to(layer.weight.dtype) for layer in layers]
    try:
        with full_precision(weights[0]):
            found = layers[0].norm.iterate_together(operators, us, vs)
        has_checked = isinstance(found, SingularVectors) or layers[0].norm.marks_failure
        if not has_checked and not weights[0].is_meta:
            _check_lengths(found)
        return found
    except RuntimeError:  # torch.linalg.eigh raises it too
        for layer in layers:
            layer.check_finite()
        raise


def _check_lengths(found: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Raise a RuntimeError if the length of a vector is nan or overflows."""
    lengths = torch._foreach_norm([x for pair in found for x in pair])
    if not math.isfinite(float(torch.stack(lengths).sum())):
        raise RuntimeError("a norm is not finite")


@torch.no_grad()
def _loaded_vectors_fit(layer: NormedLayer, u: Tensor, v: Tensor) -> bool:
    """Whether the vectors of a loaded layer fit its weight, given the iteration's vectors u and v.

    Vectors that fit are kept, so that a run resumed from a checkpoint repeats every bit.
    """
    if layer.weight.is_meta:
        return True
    norm, operator = layer.norm, layer.measured_operator(layer.weight)
    loaded = layer.u.to(u.dtype), layer.v.to(v.dtype)
    with full_precision(layer.weight):
        before, now = (norm.sigma(operator, *vectors) for vectors in (loaded, (u, v)))
        within = abs(now - before) <= LOADED_WITHIN * before
        return bool(within) and norm.belong(operator, *loaded)


@torch.inference_mode(False)
@torch.no_grad()
def _measured(
    layers: Sequence[NormedLayer], found: SingularVectors | None = None
) -> list[Measured]:
    """The contraction factors and norm gradients of layers of one kind, at their vectors.

    Args:
        layers: the layers.
        found: the vectors, if an iteration has just found them.
    """
    norm = layers[0].norm
    assert isinstance(norm, SpectralNorm)  # for the type checker
    with _UPDATE_LOCK, full_precision(layers[0].weight):
        if found is not None:
            measured = norm.measured_at(found)
        else:
            operators = [layer.measured_operator(layer.weight) for layer in layers]
            us, vs = [layer.u for layer in layers], [layer.v for layer in layers]
            measured = norm.measured(operators, us, vs)
    return [
        each._replace(gradient=each.gradient.view(layer.weight.shape))
        for layer, each in zip(layers, measured, strict=True)
    ]
