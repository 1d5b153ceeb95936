"""Compute the effective weights and scaled biases of several layers in one operation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ...differentiation import torch_func_is_active
from ...tracing import tracing_state
from .divided import Measured, pulled_to_weight
from .layer import LipschitzLayer
from .spectral_norm import SpectralNorm

Scalar = Tensor | float

_EFFECTIVE_WEIGHT = LipschitzLayer.effective_weight
"""A layer whose class overrides this method computes its weight itself."""


def is_eager() -> bool:
    """Whether no trace, compiler, ``torch.func`` transform or forward mode is active."""
    return not (
        tracing_state() is not None
        or torch.compiler.is_compiling()
        or torch_func_is_active()
        or forward_ad._current_level >= 0
    )


def measured_together(layers: Sequence[object]) -> list[Measured] | None:
    """The measured norms of layers, if :func:`scaled_together` can compute their weights.

    It can in eager code, outside ``torch.func`` and forward mode, for parameters of one dtype and
    device whose spectral norms have been measured. Otherwise the result is ``None``.
    """
    if not is_eager():
        return None
    measured: list[Measured] = []
    first = cast(LipschitzLayer, layers[0]).weight
    dtype, device = first.dtype, first.device
    for layer in layers:
        if not isinstance(layer, LipschitzLayer):
            return None
        weight, norm = layer.weight, layer.norm_state.measured
        if (
            weight.dtype != dtype
            or weight.device != device
            or not isinstance(weight, nn.Parameter)
            or not isinstance(layer.norm, SpectralNorm)
            or norm is None
            or weight.is_inference()
            or getattr(layer.effective_weight, "__func__", None) is not _EFFECTIVE_WEIGHT
        ):
            return None
        measured.append(norm)
    return measured


def scaled_together(
    weights: Sequence[Tensor],
    measured: Sequence[Measured],
    gains: Sequence[Scalar],
    biases: Sequence[Tensor],
    bias_gains: Sequence[Scalar],
) -> tuple[list[Tensor], list[Tensor]]:
    """Multiply weights by their contraction factors and gains, and biases by their gains.

    Args:
        weights: the weights of layers, see :func:`measured_together`.
        measured: the measured norm of each weight.
        gains: a scalar for each weight.
        biases: any number of biases.
        bias_gains: a scalar for each bias.

    Returns:
        The effective weights and the scaled biases.
    """
    both = _scalars([*gains, *bias_gains], weights[0])
    scaled = _ScaledTogether.apply(measured, both, *weights, *biases)
    return list(scaled[: len(weights)]), list(scaled[len(weights) :])


def _scalars(values: Sequence[Scalar], like: Tensor) -> Tensor:
    """Stack scalars into one vector; numbers take the dtype and device of ``like``."""
    tensors = [
        value if isinstance(value, Tensor) else _constant(value, like.dtype, like.device)
        for value in values
    ]
    return torch.stack(tensors)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _constant(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(value, dtype=dtype, device=device)


class _ScaledTogether(torch.autograd.Function):
    """Multiply tensors by gains, and the first ones, weights, by contraction factors too."""

    @staticmethod
    def forward(
        ctx: Any, measured: Sequence[Measured], gains: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        number = len(measured)
        factors = gains.clone()
        factors[:number].mul_(torch.stack([each.contraction for each in measured]))
        ctx.measured = measured
        ctx.save_for_backward(gains, factors, *tensors)
        ctx.set_materialize_grads(False)
        return tuple(torch._foreach_mul(tensors, factors.unbind()))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        gains, factors, *tensors = ctx.saved_tensors
        if torch.is_grad_enabled():
            return None, *_ScaledTogether._one_by_one(ctx.measured, gains, tensors, grads)
        number = len(ctx.measured)
        given = [
            torch.zeros_like(tensor) if grad is None else grad
            for grad, tensor in zip(grads, tensors, strict=True)
        ]
        shares = torch.stack([each.sum() for each in torch._foreach_mul(given, tensors)])
        found = torch._foreach_mul(given, factors.unbind())
        # the contraction factor depends on the weight too, see pulled_to_weight
        of_weights = shares[:number]
        rates = of_weights * factors[:number]
        rates.mul_(torch.stack([each.inverse for each in ctx.measured]))
        directions = [each.gradient for each in ctx.measured]
        torch._foreach_sub_(found[:number], torch._foreach_mul(directions, rates.unbind()))
        of_weights.mul_(torch.stack([each.contraction for each in ctx.measured]))
        return None, shares, *found

    @staticmethod
    def _one_by_one(
        measured: Sequence[Measured],
        gains: Tensor,
        tensors: Sequence[Tensor],
        grads: Sequence[Tensor | None],
    ) -> list[Tensor | None]:
        """The same gradients, differentiable."""
        shares: list[Tensor] = []
        found: list[Tensor | None] = []
        for i, (tensor, grad) in enumerate(zip(tensors, grads, strict=True)):
            if grad is None:
                shares.append(torch.zeros_like(gains[i]))
                found.append(None)
            elif i < len(measured):
                by_weight, share = pulled_to_weight(grad, tensor, measured[i], gains[i])
                shares.append(share)
                found.append(by_weight)
            else:
                shares.append((grad * tensor).sum())
                found.append(grad * gains[i])
        return [torch.stack(shares), *found]
