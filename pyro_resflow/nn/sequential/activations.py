"""torch's activations as elementwise functions, with the derivatives that autograd gives them.

Each reads its settings from the module when it is evaluated. Where a derivative jumps, the value
at the jump is that of torch's own backward pass.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..stages import Elementwise, HyperbolicTangent, Swish

GELU_CUBIC = 0.044715
"""The coefficient of the cubic term in torch's approximation of GELU by tanh."""


class ModuleElementwise(Elementwise):
    """An elementwise function with the settings of a module.

    Args:
        module: one of torch's activations.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module


class SiLU(ModuleElementwise, Swish):
    """``nn.SiLU``, which has no settings."""


class ELU(ModuleElementwise):
    """``nn.ELU``."""

    def core(self, h: Tensor) -> Tensor:
        return F.elu(h, self.module.alpha)

    def core_slope(self, h: Tensor) -> Tensor:
        return torch.where(h > 0, 1.0, self.module.alpha * torch.exp(h.clamp(max=0)))

    def core_curvature(self, h: Tensor) -> Tensor:
        return torch.where(h < 0, self.module.alpha * torch.exp(h.clamp(max=0)), 0.0)


class Tanh(ModuleElementwise, HyperbolicTangent):
    """``nn.Tanh``."""


class Sigmoid(ModuleElementwise):
    """``nn.Sigmoid``."""

    def core(self, h: Tensor) -> Tensor:
        return torch.sigmoid(h)

    def core_slope(self, h: Tensor) -> Tensor:
        s = torch.sigmoid(h)
        return s * (1 - s)

    def core_curvature(self, h: Tensor) -> Tensor:
        s = torch.sigmoid(h)
        return s * (1 - s) * (1 - 2 * s)


class Softplus(ModuleElementwise):
    """``nn.Softplus``, which is the identity where beta h exceeds its threshold."""

    def core(self, h: Tensor) -> Tensor:
        return F.softplus(h, self.module.beta, self.module.threshold)

    def core_slope(self, h: Tensor) -> Tensor:
        scaled = h * self.module.beta
        return torch.where(scaled > self.module.threshold, 1.0, torch.sigmoid(scaled))

    def core_curvature(self, h: Tensor) -> Tensor:
        scaled = h * self.module.beta
        s = torch.sigmoid(scaled)
        curvature = self.module.beta * s * (1 - s)
        return torch.where(scaled < self.module.threshold, curvature, 0.0)


class LeakyReLU(ModuleElementwise):
    """``nn.LeakyReLU``."""

    def core(self, h: Tensor) -> Tensor:
        return F.leaky_relu(h, self.module.negative_slope)

    def core_slope(self, h: Tensor) -> Tensor:
        one = torch.ones((), dtype=h.dtype, device=h.device)
        return torch.where(h > 0, one, self.module.negative_slope)

    def core_curvature(self, h: Tensor) -> Tensor:
        return torch.zeros_like(h)

    def add_curvature_times_(self, out: Tensor, w: Tensor, h: Tensor, value: Tensor) -> None:
        """Leave ``out`` alone: the curvature is zero."""


class GELU(ModuleElementwise):
    """``nn.GELU``, exact or approximated by tanh."""

    def core(self, h: Tensor) -> Tensor:
        return F.gelu(h, approximate=self.module.approximate)

    def core_slope(self, h: Tensor) -> Tensor:
        if self.module.approximate == "tanh":
            t, slope, _ = self._tanh(h)
            return (1 + t + h * slope) / 2
        return _normal_cdf(h) + h * _normal_density(h)

    def core_curvature(self, h: Tensor) -> Tensor:
        if self.module.approximate == "tanh":
            _, slope, curvature = self._tanh(h)
            return slope + h * curvature / 2
        return _normal_density(h) * (2 - h.square())

    def _tanh(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The tanh of the approximation, (1 + t) h / 2, and its two derivatives."""
        scale, square = math.sqrt(2 / math.pi), h.square()
        t = torch.tanh(scale * h * (1 + GELU_CUBIC * square))
        inner = scale * (1 + 3 * GELU_CUBIC * square)
        inner_slope = scale * 6 * GELU_CUBIC * h
        rest = 1 - t.square()
        return t, rest * inner, rest * (inner_slope - 2 * t * inner.square())


def _normal_density(h: Tensor) -> Tensor:
    return torch.exp(-h.square() / 2) / math.sqrt(2 * math.pi)


def _normal_cdf(h: Tensor) -> Tensor:
    return (1 + torch.erf(h / math.sqrt(2))) / 2
