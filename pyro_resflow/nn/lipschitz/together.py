"""The effective weights of several layers, and their scaled biases, in one operation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ...tracing import tracing_state
from .divided import Measured, pulled_to_weight
from .layer import LipschitzLayer
from .spectral_norm import SpectralNorm

Scalar = Tensor | float

_EFFECTIVE_WEIGHT = LipschitzLayer.effective_weight
"""A layer that computes its weight by a method of its own is asked itself."""


def measured_together(layers: Sequence[LipschitzLayer]) -> list[Measured] | None:
    """The norms of layers whose effective weights :func:`scaled_together` can compute.

    It can in plain eager code, for weights of one type that are held to spectral norms which have
    been measured. Returns ``None`` if it cannot.
    """
    if (
        tracing_state() is not None
        or torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    ):
        return None
    measured: list[Measured] = []
    dtype, device = layers[0].weight.dtype, layers[0].weight.device
    for layer in layers:
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
    """Weights divided by their norms and multiplied by gains, and biases times theirs.

    Args:
        weights: of layers, see :func:`measured_together`.
        measured: their norms.
        gains: a scalar for each weight.
        biases: any number.
        bias_gains: a scalar for each bias.

    Returns:
        The weights and the biases.
    """
    both = _scalars([*gains, *bias_gains], weights[0])
    scaled = _ScaledTogether.apply(measured, both, *weights, *biases)
    return list(scaled[: len(weights)]), list(scaled[len(weights) :])


def _scalars(values: Sequence[Scalar], like: Tensor) -> Tensor:
    """Scalars in one vector, of the type of a tensor."""
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
    """Each tensor times its gain; the first of them, which are weights, divided by their norms."""

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
        # the norm falls with the weight, see pulled_to_weight
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
