r"""Increasing functions of one variable, applied to each entry with separate parameters.

Couplings change one half of an event by them; a network of the other half gives the parameters.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...rebuilding import Rebuildable


class ElementwiseMap(Rebuildable, nn.Module):
    r"""An increasing map of each entry, with separate parameters for every entry.

    Subclasses set :attr:`num_parameters` and implement both directions. Entries have shape
    ``(N, *event)`` and their parameters ``(N, num_parameters, *event)``.
    """

    num_parameters: int
    """The number of parameters of each entry."""

    @property
    def passes(self) -> tuple[str, str]:
        """How the two directions are computed: ``"one pass"``, or the class of the solver."""
        return "one pass", "one pass"

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """y and log dy/dx, both of the shape of x."""
        raise NotImplementedError

    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """x and log dy/dx (of the forward direction) at it, both of the shape of y."""
        raise NotImplementedError


class BoundedLogScale(Rebuildable, nn.Module):
    r"""The log-scale :math:`s = \bar s\tanh(h/\bar s)` of a network's output h.

    The scale cannot overflow, and h = 0 gives the scale 1.

    Args:
        bound: :math:`\bar s`, the largest absolute log-scale; Flow++ uses 1.

    Reference:
        Ho et al., Flow++, 2019; its published code.

    Example:
        >>> import torch
        >>> from pyro_resflow.transforms import BoundedLogScale
        >>> BoundedLogScale(2.0)(torch.tensor([-1000.0, 0.0, 1000.0]))
        tensor([-2.,  0.,  2.])
    """

    def __init__(self, bound: float = 1.0) -> None:
        super().__init__()
        if not bound > 0:
            raise ValueError(f"bound: expected a positive number, got {bound}.")
        self.bound = bound

    def forward(self, h: Tensor) -> Tensor:
        """The log-scale, of the shape of h."""
        return self.bound * (h / self.bound).tanh()


class LearnedLogScale(Rebuildable, nn.Module):
    r"""Real NVP's log-scale :math:`s = a\tanh(h)` with a learned scalar a that starts at 0.

    The network that gives h must not start at zero: both gradients would vanish, and neither the
    network nor a would learn.

    Reference:
        Dinh, Sohl-Dickstein and Bengio, Density Estimation Using Real NVP, 2017; its published
        code.
    """

    def __init__(self) -> None:
        super().__init__()
        self.amplitude = nn.Parameter(torch.zeros(()))

    def forward(self, h: Tensor) -> Tensor:
        """The log-scale, of the shape of h."""
        return self.amplitude * h.tanh()


class SigmoidScale(Rebuildable, nn.Module):
    r"""The scale :math:`e^s = m\,\sigma(h + o)` below m: Glow's with m = 1, Jet's with m = 2.

    h = 0 gives :math:`m\,\sigma(o)`. With Glow's m = 1 and o = 2 this is 0.88, so that the
    coupling does not start as the identity. With Jet's m = 2 and o = 0 it is 1.

    Args:
        offset: o, added to h.
        factor: m, a positive number.

    Raises:
        ValueError: if the factor is not positive.

    Reference:
        Kingma and Dhariwal, Glow, 2018; its published code. Kolesnikov, Pinto and Tschannen, Jet,
        2024.

    Example:
        >>> import torch
        >>> from pyro_resflow.transforms import SigmoidScale
        >>> SigmoidScale()(torch.zeros(1)).exp()
        tensor([0.8808])
    """

    def __init__(self, offset: float = 2.0, factor: float = 1.0) -> None:
        super().__init__()
        if not factor > 0:
            raise ValueError(f"factor: expected a positive number, got {factor}.")
        self.offset = offset
        self.factor = factor

    def forward(self, h: Tensor) -> Tensor:
        """The log-scale, of the shape of h."""
        log_scale = F.logsigmoid(h + self.offset)
        return log_scale + math.log(self.factor) if self.factor != 1 else log_scale


class AffineMap(ElementwiseMap):
    r"""Scale and shift, :math:`y = e^{s(h)} x + b`, with two parameters (h, b) for each entry.

    Args:
        log_scale: module from h to the log-scale s, of the same shape: :class:`BoundedLogScale`
            (default), :class:`LearnedLogScale` (Real NVP) or :class:`SigmoidScale` (Glow, Jet).

    Reference:
        Dinh, Sohl-Dickstein and Bengio, Density Estimation Using Real NVP, 2017, section 3.2.

    Example:
        >>> import torch
        >>> from pyro_resflow.transforms import AffineMap
        >>> affine, x, parameters = AffineMap(), torch.randn(7, 3), torch.randn(7, 2, 3)
        >>> y, log_slope = affine(x, parameters)
        >>> torch.allclose(affine.inverse(y, parameters)[0], x, atol=1e-5)
        True
    """

    num_parameters = 2

    def __init__(self, log_scale: nn.Module | None = None) -> None:
        super().__init__()
        self.log_scale = log_scale if log_scale is not None else BoundedLogScale()

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """y and log dy/dx, both of the shape of x."""
        raw, shift = parameters.unbind(1)
        log_scale = self.log_scale(raw)
        return x * log_scale.exp() + shift, log_scale

    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """x and log dy/dx (of the forward direction) at it, both of the shape of y."""
        raw, shift = parameters.unbind(1)
        log_scale = self.log_scale(raw)
        return (y - shift) * (-log_scale).exp(), log_scale
