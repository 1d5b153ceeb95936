r"""The base class of layers with a bounded Lipschitz constant.

The effective weight of a layer is :math:`W / \max(1, \sigma(W)/c)`: a weight of norm below c stays
as it is. The norm is measured once after each change of the weight, see :mod:`.update`. Until the
next change every pass sees the same effective weight.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from ...differentiation import differentiable_once
from ...precision import HalfPrecisionError, full_precision
from ...rebuilding import Rebuildable
from ...tracing import tracing_state
from ..stages import Affine, Stage, reusable
from .divided import REMEDY, DividedByNorm
from .drawing import draw_as_linear
from .operator_norm import OperatorNorm
from .operators import LinearOperator
from .spectral_norm import SpectralNorm
from .state import NonFiniteWeightError, NormedLayer, NormState
from .update import iterated, recorded_vectors, update_layer, updated_measured, updated_vectors


class LipschitzLayer(Rebuildable, NormedLayer):
    """A linear layer with a bounded Lipschitz constant.

    Subclasses implement the linear map, :meth:`operator` and :meth:`affine`, and may override
    :meth:`measured_operator` and :meth:`kind`.

    Args:
        weight_shape: shape of the weight, output features first.
        domain_size: number of entries of one input.
        codomain_size: number of entries of one output.
        norm: the norm that bounds the layer, and its coefficient.
        bias: whether the layer has a bias, one per output feature.
    """

    def __init__(
        self,
        weight_shape: tuple[int, ...],
        domain_size: int,
        codomain_size: int,
        norm: OperatorNorm,
        bias: bool,
    ) -> None:
        super().__init__()
        self.norm = norm
        self.weight = nn.Parameter(torch.empty(weight_shape))
        self.bias = nn.Parameter(torch.empty(weight_shape[0])) if bias else None
        self.register_buffer("u", torch.empty(codomain_size))
        self.register_buffer("v", torch.empty(domain_size))
        self.norm_state = NormState(self)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw weight and bias as ``nn.Linear`` does, and random vectors for the iteration."""
        draw_as_linear(self.weight, self.bias)
        self.u.normal_()
        self.v.normal_()

    def operator(self, weight: Tensor) -> LinearOperator:
        """The linear map of a weight of this layer's shape."""
        raise NotImplementedError

    def measured_operator(self, weight: Tensor) -> LinearOperator:
        """A linear map with the norm of :meth:`operator`, which may be cheaper to measure."""
        return self.operator(weight)

    def affine(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The layer's map at x, with the given weight and bias."""
        raise NotImplementedError

    @property
    def is_dense(self) -> bool:
        """Whether the map is the product with the weight matrix plus the bias."""
        return False

    def forward(self, x: Tensor) -> Tensor:
        return self.affine(x, self.effective_weight(), self.bias)

    @reusable
    def stages(self) -> list[Stage[Any]]:
        """One affine map."""
        return [Affine(self)]

    @property
    def is_current(self) -> bool:
        """Whether the norm has been measured since the weight or the norm last changed."""
        return self.norm_state.is_current(self)

    def update(self) -> None:
        """Measure the norm if the weight has changed since it was last measured.

        Raises:
            NonFiniteWeightError: if the weight holds nan or infinite values.
        """
        update_layer(self)

    def sigma(self) -> Tensor:
        """The measured norm of the raw weight, a scalar, differentiable."""
        if isinstance(self.weight, nn.Parameter):
            u, v = updated_vectors(self)
        else:
            # functional_call has replaced the weight for one call: keep the original's vectors
            ((u, v),) = iterated([self])
        with full_precision(self.weight):
            sigma = self.norm.sigma(self.measured_operator(self.weight), u, v)
        return differentiable_once(sigma, REMEDY)  # u and v count as constants

    def effective_weight(self, gain: Tensor | float = 1.0) -> Tensor:
        """The weight divided by max(1, sigma/c), same shape as the weight.

        Args:
            gain: a scalar to multiply it by.
        """
        if torch.compiler.is_compiling() or tracing_state() is not None:
            return self._recorded_weight(gain)
        if not isinstance(self.weight, nn.Parameter) or not isinstance(self.norm, SpectralNorm):
            return self.weight * (self._contraction(self.sigma()) * gain)
        measured = updated_measured(self)
        if not torch.is_grad_enabled():
            return self.weight * (measured.contraction * gain)
        if self.weight.is_inference():
            raise ValueError(
                f"weight of {type(self).__name__} of shape {tuple(self.weight.shape)}: expected "
                "a tensor created outside torch.inference_mode, got an inference tensor, which "
                "cannot be differentiated; build the flow outside of that mode, or evaluate it "
                "under torch.no_grad()."
            )
        return DividedByNorm.apply(measured, self.weight, gain)

    def _recorded_weight(self, gain: Tensor | float) -> Tensor:
        """Compute the effective weight by operations that a compiler or a trace can record."""
        u, v = recorded_vectors(self.weight.detach(), self.norm_state.key)
        with torch.autocast(self.weight.device.type, enabled=False):
            sigma = self.norm.sigma(self.measured_operator(self.weight), u, v)
        if isinstance(self.norm, SpectralNorm):
            # the gradient by products, which may be in TF32; the value by lengths, which are not
            sigma = sigma + (self.norm.value(u, v) - sigma).detach()
        return self.weight * (self._contraction(sigma) * gain)

    def _contraction(self, sigma: Tensor) -> Tensor:
        c = self.norm.coefficient
        return c / sigma.clamp_min(c)

    @torch.no_grad()
    def lipschitz_bound(self) -> Tensor:
        """A certified upper bound of the effective weight's norm, a scalar."""
        with full_precision(self.weight):
            return self.norm.upper_bound(self.measured_operator(self.effective_weight()))

    # A copied or moved layer keeps its vectors, and so computes the same values as the original.
    # The vectors in a loaded state may belong to another weight, if the loaded one has been
    # averaged or scaled: the first update checks whether they fit.

    def __getstate__(self) -> dict[str, object]:
        known = (self.is_current, self.norm_state.arrived)
        return {**self.__dict__, "norm_state": known}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        is_current, arrived = state.pop("norm_state")
        super().__setstate__(state)
        self.norm_state = NormState(self)
        self.norm_state.arrived = arrived
        if is_current:
            self.norm_state.trust(self)

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        is_current = self.is_current and not self.weight.is_meta
        super()._apply(fn, recurse)
        self.norm_state.forget()
        if is_current:
            self.norm_state.trust(self)
        return self

    def _save_to_state_dict(self, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        # a layer that cannot be evaluated, for instance after it diverged, can still be saved
        with suppress(NonFiniteWeightError, HalfPrecisionError):
            self.update()
        super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.norm_state.load(all(prefix + name in state_dict for name in ("weight", "u", "v")))
