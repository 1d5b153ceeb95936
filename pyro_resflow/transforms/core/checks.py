"""Checks of the shape and the type of what a transform is given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...precision import HALF, HalfPrecisionError, autocast_dtype
from ...walk import first_parameter


def check_dtype(name: str, x: Tensor, network: object, *, autocast: bool = True) -> None:
    """Raise if a tensor and a network's parameters have types that do not mix.

    float64 mixes with no other type. Half precision mixes with float32 under autocast alone, and
    only in operations that follow autocast.

    Args:
        name: of the argument.
        x: the tensor.
        network: a module; any other object has no parameters.
        autocast: whether the operations follow autocast.

    Raises:
        HalfPrecisionError: for a tensor in half precision; it names both types and the remedies.
        ValueError: for a tensor of another type; it names both types and the remedies.
    """
    if not isinstance(network, nn.Module) or not x.is_floating_point():
        return
    parameter = first_parameter(network)
    like = x if parameter is None else parameter
    if x.dtype == like.dtype:
        return
    if x.dtype in HALF and like.dtype not in HALF:
        double = like.dtype == torch.float64
        if double or not autocast or autocast_dtype(x) is None:
            faster = "" if double else " For speed, compute under torch.autocast as well."
            raise HalfPrecisionError(
                f"{name}: expected {like.dtype}, the type of the flow's parameters, got "
                f"{x.dtype}. Convert {name} by .to({like.dtype}).{faster}"
            )
    elif torch.float64 in (x.dtype, like.dtype):
        raise ValueError(
            f"{name}: expected {like.dtype}, the type of the flow's parameters, got {x.dtype}. "
            f"Convert {name} by .to({like.dtype}), or the flow by .to({x.dtype})."
        )


def check_event_shape(name: str, x: Tensor, event_shape: Sequence[int]) -> None:
    """Raise unless ``x`` is a floating-point tensor that ends in ``event_shape``.

    Raises:
        ValueError: naming the argument, what was given and what to do.
    """
    expected = tuple(event_shape)
    if not x.is_floating_point():
        raise ValueError(
            f"{name}: expected floating-point numbers, got {x.dtype}. Integer images are scored "
            "through pyro_resflow.distributions.Dequantized."
        )
    if tuple(x.shape[x.dim() - len(expected) :]) != expected or x.dim() < len(expected):
        raise ValueError(
            f"{name}: expected shape (*batch, {', '.join(map(str, expected))}), got "
            f"{tuple(x.shape)}."
        )
