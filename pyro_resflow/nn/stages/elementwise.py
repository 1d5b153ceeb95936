"""Elementwise functions by their value, slope and curvature."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ...differentiation import is_transformed


class Elementwise:
    r"""An elementwise :math:`\psi` whose products with derivatives follow from three methods.

    Subclasses implement the value :meth:`core`, its slope and its curvature. They may override the
    products, which networks use, with fused formulas.
    """

    def core(self, h: Tensor) -> Tensor:
        """psi(h)."""
        raise self._missing("core(h)", "psi(h)")

    def core_(self, h: Tensor) -> Tensor:
        """psi(h), without derivatives; it may be written over h."""
        return self.core(h)

    def core_slope(self, h: Tensor) -> Tensor:
        """psi'(h)."""
        raise self._missing("core_slope(h)", "its first derivative")

    def core_curvature(self, h: Tensor) -> Tensor:
        """psi''(h)."""
        raise self._missing("core_curvature(h)", "its second derivative")

    def _missing(self, method: str, meaning: str) -> NotImplementedError:
        return NotImplementedError(
            f"{type(self).__name__}: expected a method {method} that returns {meaning}; an "
            "Activation implements core, core_slope and core_curvature, each elementwise."
        )

    def for_slope(self, h: Tensor) -> Tensor:
        """The tensor that the products with psi'(h) are computed from."""
        return self.core_slope(h)

    def times_slope(self, w: Tensor, for_slope: Tensor) -> Tensor:
        """psi'(h) w, differentiable."""
        return w * for_slope

    def times_slope_(self, w: Tensor, for_slope: Tensor) -> Tensor:
        """psi'(h) w, written over w."""
        return w.mul_(for_slope)

    def add_curvature_times_(self, out: Tensor, w: Tensor, h: Tensor, value: Tensor) -> None:
        """Add psi''(h) w to ``out`` in place, given psi(h); w, h and value may be overwritten."""
        out.addcmul_(self.core_curvature(h), w)


class HyperbolicTangent(Elementwise):
    r"""The hyperbolic tangent, :math:`\psi(h) = \tanh h`."""

    def core(self, h: Tensor) -> Tensor:
        return torch.tanh(h)

    def core_slope(self, h: Tensor) -> Tensor:
        return 1 - torch.tanh(h).square()

    def core_curvature(self, h: Tensor) -> Tensor:
        t = torch.tanh(h)
        return -2 * t * (1 - t.square())


class Swish(Elementwise):
    r"""Swish with fused products, :math:`\psi(h) = h\,\sigma(h)`."""

    def core(self, h: Tensor) -> Tensor:
        # without gradients enabled, the derivative of torch's silu has no forward mode
        return h * torch.sigmoid(h) if is_transformed(h) else F.silu(h)

    def core_(self, h: Tensor) -> Tensor:
        is_own = type(self).core is not Swish.core
        return self.core(h) if is_own else F.silu(h, inplace=True)

    def core_slope(self, h: Tensor) -> Tensor:
        s = torch.sigmoid(h)
        return s * (1 + h * (1 - s))

    def core_curvature(self, h: Tensor) -> Tensor:
        s = torch.sigmoid(h)
        return s * (1 - s) * (2 + h * (1 - 2 * s))

    def for_slope(self, h: Tensor) -> Tensor:
        return h

    def times_slope(self, w: Tensor, for_slope: Tensor) -> Tensor:
        if torch.is_grad_enabled() or is_transformed(w, for_slope):
            # the fused product has no derivative
            return w * self.core_slope(for_slope)
        return torch.ops.aten.silu_backward(w, for_slope)

    def times_slope_(self, w: Tensor, for_slope: Tensor) -> Tensor:
        return torch.ops.aten.silu_backward(w, for_slope, grad_input=w)

    def add_curvature_times_(self, out: Tensor, w: Tensor, h: Tensor, value: Tensor) -> None:
        # psi'' = s (1 - s) (2 + h - 2 psi) with the sigmoid s, in the fewest passes over memory
        rest = torch.sub(h, value, alpha=2, out=value)
        product = torch.ops.aten.sigmoid_backward(w, h.sigmoid_(), grad_input=w)
        out.addcmul_(product, rest).add_(product, alpha=2)
