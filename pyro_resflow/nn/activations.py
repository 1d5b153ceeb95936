r"""Activations with a known Lipschitz constant, slope and curvature.

An activation here is :math:`\phi(h) = \kappa\,\psi(\beta h)`: a parameter-free core
:math:`\psi` between an input gain :math:`\beta` and an output gain :math:`\kappa`. The core's
value, first and second derivative are fused expressions. Every :math:`\phi` has a Lipschitz
constant of at most 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..rebuilding import Rebuildable
from .stages import (
    BothSigns,
    Core,
    Elementwise,
    Gain,
    HyperbolicTangent,
    Scale,
    Stage,
    Swish,
    reusable,
    scaled,
)

LIPSWISH_BOUND = 1.1
"""The largest slope of Swish, 1.09984, rounded up as in the paper: one constant for every beta."""

LIPSWISH_START = math.log1p(math.exp(0.5))
"""The initial beta, 0.97: the parameter b starts at 0.5, as in the authors' code."""

SHARP_BETA = 4.0
"""The start of beta that short runs of a Residual Flow preferred, see docs/learning_rates.md."""

FIXED_BETA = 3.0
"""The default of a fixed beta: the bend is as wide as a third of a standard deviation."""

CLIPSWISH_BOUND = 1.004
"""The largest length of the two slopes of concatenated LipSwish, rounded up as in the paper."""

PILA_RATE = 5.0
"""k of Pila, as in the paper: the rate at which the exponential part falls off."""

CPILA_SHIFT = 0.2
"""s of concatenated Pila, as in the paper."""

CPILA_BOUND = 1.06
"""The largest length of the two slopes of concatenated Pila at that shift, as in the paper."""


class Activation(Elementwise, Rebuildable, nn.Module):
    r"""Elementwise :math:`\phi(h) = \kappa\,\psi(\beta h)` with Lipschitz constant at most 1.

    Subclasses implement the core :math:`\psi` (:meth:`core`), its slope and its curvature, and may
    override the gains. The output has the shape of the input.
    """

    expansion: int = 1
    """Output features per input feature."""

    def input_gain(self) -> Tensor | float:
        """The scalar beta."""
        return 1.0

    def output_gain(self) -> Tensor | float:
        """The scalar kappa."""
        return 1.0

    def lipschitz_bound(self) -> float:
        """An upper bound of the Lipschitz constant."""
        return 1.0

    def forward(self, x: Tensor) -> Tensor:
        """phi(x), same shape."""
        return scaled(self.core(scaled(x, self.input_gain())), self.output_gain())

    def slope(self, x: Tensor) -> Tensor:
        """phi'(x), same shape."""
        beta = self.input_gain()
        return scaled(self.core_slope(scaled(x, beta)), beta * self.output_gain())

    def curvature(self, x: Tensor) -> Tensor:
        """phi''(x), same shape."""
        beta = self.input_gain()
        return scaled(self.core_curvature(scaled(x, beta)), beta * beta * self.output_gain())

    @reusable
    def stages(self) -> list[Stage[Any]]:
        """The core between its two gains."""
        return [Scale(self.input_gain), Core(self), Scale(self.output_gain)]


class LipSwish(Swish, Activation):
    r"""Swish divided by its largest slope: :math:`\phi(h) = h\,\sigma(\beta h)/1.1`.

    :math:`\beta = \mathrm{softplus}(b) > 0` is learned. The largest slope of Swish is 1.09984 for
    every :math:`\beta`.

    Args:
        beta: the initial value of :math:`\beta`, a positive number; by default b starts at 0.5, as
            in the authors' code. The larger, the sharper the bend: flows of images learned faster
            from 4.

    Raises:
        ValueError: for a beta that is not positive.

    Reference:
        Chen et al., Residual Flows for Invertible Generative Modeling, 2019, section 3.3.

    Example:
        >>> import torch
        >>> from pyro_resflow.nn import LipSwish
        >>> LipSwish().slope(torch.linspace(-9, 9, 1001)).abs().max().item() < 1
        True
    """

    def __init__(self, beta: float = LIPSWISH_START) -> None:
        super().__init__()
        raw = math.log(-math.expm1(-_checked_beta(beta))) + beta  # the inverse of softplus
        self.raw_beta = nn.Parameter(torch.tensor(raw))

    def input_gain(self) -> Tensor:
        return F.softplus(self.raw_beta)

    def output_gain(self) -> Tensor:
        return torch.reciprocal(LIPSWISH_BOUND * F.softplus(self.raw_beta))

    @classmethod
    def gains_together(cls, activations: Sequence[LipSwish]) -> dict[Gain, Tensor | float]:
        """The input and output gains of several activations, by the methods that compute them."""
        betas = F.softplus(torch.stack([each.raw_beta for each in activations]))
        outputs = torch.reciprocal(LIPSWISH_BOUND * betas)
        found: dict[Gain, Tensor | float] = {}
        for each, beta, output in zip(activations, betas.unbind(), outputs.unbind(), strict=True):
            found[each.input_gain], found[each.output_gain] = beta, output
        return found


class SharpLipSwish(LipSwish):
    r"""LipSwish whose :math:`\beta` starts from 4: flows of images learned faster than from 0.97.

    A class of its own, so that configuration files can name it.

    Args:
        beta: see :class:`LipSwish`.

    Example:
        >>> import torch
        >>> from pyro_resflow.flows import ConvBlock
        >>> from pyro_resflow.nn import SharpLipSwish
        >>> recipe = ConvBlock(16, activation=SharpLipSwish)
        >>> net = recipe(torch.Size([3, 8, 8]), preactivation=True)
        >>> round(net[0].input_gain().item(), 4)
        4.0
    """

    def __init__(self, beta: float = SHARP_BETA) -> None:
        super().__init__(beta)


LEARNED_BETAS = LipSwish, SharpLipSwish
"""The classes with LipSwish's gains; a subclass of another package may have its own."""


class FixedLipSwish(Swish, Activation):
    r"""LipSwish with a fixed :math:`\beta`: :math:`\phi(h) = h\,\sigma(\beta h)/1.1`.

    It has no parameter, and a training step takes fewer operations than with :class:`LipSwish`.

    Args:
        beta: :math:`\beta`, a positive number; the larger, the sharper the bend.

    Raises:
        ValueError: for a beta that is not positive.
    """

    def __init__(self, beta: float = FIXED_BETA) -> None:
        super().__init__()
        self.beta = _checked_beta(beta)

    def input_gain(self) -> float:
        return self.beta

    def output_gain(self) -> float:
        return 1 / (LIPSWISH_BOUND * self.beta)


def _checked_beta(beta: float) -> float:
    if not 0 < beta < math.inf:
        raise ValueError(f"beta: expected a positive number, got {beta}.")
    return beta


class _Parameterless(Activation):
    """An activation without gains, that is, equal to its core."""

    @reusable
    def stages(self) -> list[Stage[Any]]:
        return [Core(self)]


class ELU(_Parameterless):
    r"""Exponential linear unit: h for h > 0, :math:`e^h - 1` otherwise; slope at most 1.

    Its curvature is discontinuous at 0, so that the gradients of estimators are correct almost
    everywhere.

    Reference:
        Clevert, Unterthiner and Hochreiter, 2016.
    """

    def core(self, h: Tensor) -> Tensor:
        return F.elu(h)

    def core_slope(self, h: Tensor) -> Tensor:
        return torch.exp(h.clamp(max=0))

    def core_curvature(self, h: Tensor) -> Tensor:
        return torch.where(h < 0, torch.exp(h.clamp(max=0)), 0.0)


class Tanh(HyperbolicTangent, _Parameterless):
    """Hyperbolic tangent; slope at most 1."""


class Softplus(_Parameterless):
    """Softplus, log(1 + e^h); slope at most 1."""

    def core(self, h: Tensor) -> Tensor:
        return F.softplus(h)

    def core_slope(self, h: Tensor) -> Tensor:
        return torch.sigmoid(h)

    def core_curvature(self, h: Tensor) -> Tensor:
        s = torch.sigmoid(h)
        return s * (1 - s)


class Pila(_Parameterless):
    r"""Piecewise linear-exponential unit, divided by its largest slope.

    :math:`\psi(h) = h` for :math:`h > 0`, else
    :math:`(k^2 h^3/2 - k h^2 + h)\,e^{k h}` with :math:`k = 5`: three times differentiable at 0.
    The slope's largest absolute value is 1.

    Reference:
        Ahn, Kim, Hong and Kim, Invertible Monotone Operators for Normalizing Flows, 2022, section
        5.2.
    """

    k = PILA_RATE

    def core(self, h: Tensor) -> Tensor:
        n, k = h.clamp(max=0), self.k
        return torch.where(h > 0, h, n * (1 - k * n + k * k * n * n / 2) * torch.exp(k * n))

    def core_slope(self, h: Tensor) -> Tensor:
        n, k = h.clamp(max=0), self.k
        return (1 - k * n + k**2 * n**2 / 2 + k**3 * n**3 / 2) * torch.exp(k * n)

    def core_curvature(self, h: Tensor) -> Tensor:
        n, k = h.clamp(max=0), self.k
        return (2 * k**3 * n**2 + k**4 * n**3 / 2) * torch.exp(k * n)


class Concatenated(Activation):
    r"""Both signs of one activation: :math:`[\phi(h - s), \phi(-h - s)] / c`.

    Features (dimension ``feature_dim`` from the right) double. The Lipschitz constant of the pair
    is below :math:`\sqrt 2`, since only one of the two slopes is large at a time. Dividing by c,
    the maximum of :math:`\sqrt{\phi'(h-s)^2 + \phi'(-h-s)^2}`, makes it 1.

    Args:
        activation: the :class:`Activation` of each half.
        bound: the constant c.
        shift: the constant s.
        feature_dim: -1 for vectors, -3 for images.
    """

    expansion = 2

    def __init__(
        self, activation: Activation, *, bound: float, shift: float = 0.0, feature_dim: int = -1
    ) -> None:
        super().__init__()
        self.activation = activation
        self.bound = bound
        self.shift = shift
        self.feature_dim = feature_dim

    def _both_signs(self, x: Tensor) -> Tensor:
        return BothSigns(self.shift, self.feature_dim).evaluate(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self._both_signs(x)) / self.bound

    def slope(self, x: Tensor) -> Tensor:
        """Slopes of the two halves with respect to x, concatenated: twice the features of x."""
        slope = self.activation.slope(self._both_signs(x)) / self.bound
        positive, negative = slope.chunk(2, dim=self.feature_dim)
        return torch.cat([positive, -negative], dim=self.feature_dim)

    def curvature(self, x: Tensor) -> Tensor:
        """Curvatures of the two halves with respect to x, concatenated."""
        return self.activation.curvature(self._both_signs(x)) / self.bound

    def stages(self) -> list[Stage[Any]]:
        """Both signs, the activation's stages, 1/c.

        Without a shift the activation's first gain comes before the signs: half the features.
        """
        both: Stage[Any] = BothSigns(self.shift, self.feature_dim)
        inner = self.activation.stages()
        if not self.shift and isinstance(inner[0], Scale):
            both, inner[0] = inner[0], both
        return [both, *inner, Scale(lambda: 1 / self.bound)]


class CLipSwish(Concatenated):
    r"""Concatenated LipSwish, :math:`[\phi(h), \phi(-h)]/1.004`; doubles the features.

    Args:
        feature_dim: -1 for vectors, -3 for images.

    Reference:
        Perugachi-Diaz, Tomczak and Bhulai, Invertible DenseNets with Concatenated LipSwish, 2021.
    """

    def __init__(self, feature_dim: int = -1) -> None:
        super().__init__(LipSwish(), bound=CLIPSWISH_BOUND, feature_dim=feature_dim)


class CPila(Concatenated):
    r"""Concatenated Pila, :math:`[\phi(h - .2), \phi(-h - .2)]/1.06`; doubles the features.

    Args:
        feature_dim: -1 for vectors, -3 for images.

    Reference:
        Ahn, Kim, Hong and Kim, Invertible Monotone Operators for Normalizing Flows, 2022.
    """

    def __init__(self, feature_dim: int = -1) -> None:
        super().__init__(Pila(), bound=CPILA_BOUND, shift=CPILA_SHIFT, feature_dim=feature_dim)
