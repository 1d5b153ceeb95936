"""Checks of the shape and dtype of a transform's input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...precision import HALF, HalfPrecisionError, autocast_dtype
from ...walk import first_parameter


def check_dtype(name: str, x: Tensor, network: object, *, autocast: bool = True) -> None:
    """Raise if a tensor's dtype does not mix with that of a network's parameters.

    float64 mixes with no other dtype. Half precision mixes with float32 only under autocast, and
    only in operations that autocast converts.

    Args:
        name: the argument's name, for the message.
        x: the tensor.
        network: the module; an object that is not a module has no parameters and passes.
        autocast: whether autocast converts the operations.

    Raises:
        HalfPrecisionError: for a tensor in half precision; names both dtypes and the remedies.
        ValueError: for another dtype that does not mix; names both dtypes and the remedies.
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
        ValueError: naming the argument, its dtype or shape, and the remedy.
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
