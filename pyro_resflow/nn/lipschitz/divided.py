"""Divide a weight by its norm, with a hand-written gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...differentiation import forward_rule, is_transformed, refusing, with_signature

REMEDY = "the norm of a weight is differentiable only once with respect to the weight."


class Measured(NamedTuple):
    """The contraction factor of a weight, and the values that its derivative depends on.

    Attributes:
        contraction: 1 / max(1, sigma/c), a scalar.
        inverse: 1 / sigma where the norm sigma is above c, else 0: the rate at which the logarithm
            of the contraction falls with the norm.
        gradient: the gradient of the norm with respect to the weight, same shape as the weight.
    """

    contraction: Tensor
    inverse: Tensor
    gradient: Tensor


class DividedByNorm(torch.autograd.Function):
    """Multiply a weight by its contraction factor and a gain."""

    generate_vmap_rule = True

    @staticmethod
    @with_signature
    def forward(measured: Measured, weight: Tensor, gain: Tensor | float) -> Tensor:
        return weight * (measured.contraction * gain)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        measured, weight, gain = inputs
        ctx.gain = None if isinstance(gain, Tensor) else gain
        saved_gain = () if ctx.gain is not None else (gain,)
        ctx.save_for_backward(weight, *measured, *saved_gain)
        ctx.save_for_forward(weight, *measured, *saved_gain)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, contraction, inverse, direction, *saved_gain = ctx.saved_tensors
        gain = saved_gain[0] if saved_gain else ctx.gain
        measured = Measured(contraction, inverse, direction)
        by_weight, by_gain = pulled_to_weight(grad, weight, measured, gain)
        return None, by_weight, by_gain if saved_gain else None

    @staticmethod
    @forward_rule
    def jvp(
        ctx: Any,
        saved: Sequence[Tensor],
        measured: None,
        tangent: Tensor | None,
        gain_tangent: Tensor | None,
    ) -> Tensor:
        weight, contraction, inverse, direction, *saved_gain = saved
        weight = refusing(weight, REMEDY)
        found = torch.zeros_like(weight)
        if tangent is not None:
            factor = contraction * (saved_gain[0] if saved_gain else ctx.gain)
            found = factor * (tangent - weight * (inverse * (direction * tangent).sum()))
        if gain_tangent is not None:
            found = found + weight * (contraction * gain_tangent)
        return found


def pulled_to_weight(
    grad: Tensor, weight: Tensor, measured: Measured, gain: Tensor | float
) -> tuple[Tensor, Tensor]:
    """The gradients with respect to a weight and its gain, given that of the effective weight."""
    contraction, inverse, direction = measured
    if torch.is_grad_enabled() or is_transformed(weight, grad):
        # the formula is differentiable in grad and gain, but not in the weight: the derivative of
        # the norm's gradient is unknown
        weight = refusing(weight, REMEDY)
    factor = contraction * gain
    share = (grad * weight).sum()
    by_weight = torch.addcmul(grad * factor, direction, share * factor * inverse, value=-1)
    return by_weight, share * contraction
