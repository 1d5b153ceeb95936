"""The width of the context that a zuko flow was made for, read off its networks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from zuko import nn as zuko_nn
from zuko.flows import continuous
from zuko.flows.autoregressive import MaskedAutoregressiveTransform
from zuko.flows.coupling import GeneralCouplingTransform
from zuko.flows.gaussianization import ElementWiseTransform
from zuko.lazy import LazyComposedTransform, LazyInverse, LazyTransform

LINEAR = (nn.Linear, zuko_nn.Linear)
"""Classes of linear layers; zuko has its own beside torch's."""


def check_context_dim(lazy: LazyTransform, context_dim: int | None) -> None:
    """Raise if a transform takes contexts of another width, or none.

    zuko stores no width. Parts of unknown classes, which may do anything with a context, and
    unconditional ones, which ignore it, agree with every width.

    Raises:
        ValueError: naming both widths and the remedy.
    """
    if context_dim is not None and context_dim < 1:
        raise ValueError(
            f"context_dim: expected at least 1, or None for a flow without a context, got "
            f"{context_dim}."
        )
    widths = sorted(set(_widths(lazy)))
    if len(widths) > 1:
        raise ValueError(
            f"lazy: expected parts that take contexts of one width, got parts of widths {widths}. "
            "zuko passes the same context to every part: make all of them with one context=..."
        )
    if not widths or widths == [context_dim or 0]:
        return
    (width,) = widths
    if width:
        raise ValueError(
            f"context_dim: expected {width}, the width of the context that this flow was made "
            f"for, got {context_dim}. Write from_zuko(flow, context_dim={width})."
        )
    raise ValueError(
        f"context_dim: expected None, since this flow was made without a context, got "
        f"{context_dim}. Leave it out, or make the flow with context={context_dim}."
    )


def _widths(lazy: nn.Module) -> Iterator[int]:
    """The width of each part that takes a context, 0 where it was made without one."""
    if isinstance(lazy, LazyInverse):
        yield from _widths(lazy.transform)
    elif isinstance(lazy, LazyComposedTransform):
        for part in lazy.transforms:
            yield from _widths(part)
    else:
        width = _width(lazy)
        if width is not None:
            yield width


def _width(lazy: nn.Module) -> int | None:
    """The width of one part's context: the inputs of its network that are not its own features.

    ``None`` for a class that is not known.
    """
    part: Any = lazy
    if isinstance(part, ElementWiseTransform):
        return _linear(part.hyper)[0].in_features if hasattr(part, "hyper") else 0
    if isinstance(part, GeneralCouplingTransform):
        return _linear(part.hyper)[0].in_features - int(part.mask.sum())
    if isinstance(part, MaskedAutoregressiveTransform):
        first, last = _linear(part.hyper)
        return first.in_features - last.out_features // part.total
    if isinstance(part, continuous.FFJTransform):
        first, last = _linear(part.ode)
        times = 2 * len(part.freqs)
        return first.in_features - last.out_features - times
    return None


def _linear(network: nn.Module) -> tuple[Any, Any]:
    """The first and the last linear layer of a network."""
    layers = [each for each in network.modules() if isinstance(each, LINEAR)]
    return layers[0], layers[-1]
