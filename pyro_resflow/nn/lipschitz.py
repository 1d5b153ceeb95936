r"""Linear and convolution layers held to a Lipschitz constant.

A layer's effective weight is :math:`W / \max(1, \sigma(W)/c)`: weights of norm below c pass
unchanged. The iteration that measures the norm runs by itself, once, when the weight has changed;
until it changes again every pass sees the same effective weight.
"""

from __future__ import annotations

import math
import threading
import weakref
from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..linearization import Linearization, without_autocast
from .norms import OperatorNorm, SpectralNorm
from .operators import ConvolutionOperator, LinearOperator, MatrixOperator

_UPDATE_LOCK = threading.RLock()


class NonFiniteWeightError(ValueError):
    """A weight holds nan or infinite values."""


class LipschitzLayer(nn.Module):
    """What a linear layer held to a Lipschitz constant shares with the next.

    Args:
        weight_shape: shape of the weight, output features first.
        domain_size: number of entries of one input.
        codomain_size: number of entries of one output.
        norm: the norm and coefficient that the layer is held to.
        bias: whether the layer has a bias, one per output feature.
    """

    u: Tensor
    v: Tensor

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
        self._updated_at: tuple[int, int] | None = None
        self._orders_at: tuple[int, ...] | None = None
        self._scale: Tensor | None = None
        self._watched: int | None = None
        self._gradient_arrived = False
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weight, the bias and the vectors of the iteration anew."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)
        self.u.normal_()
        self.v.normal_()

    def operator(self, weight: Tensor) -> LinearOperator:
        """The linear map that a weight stands for."""
        raise NotImplementedError

    @property
    def is_current(self) -> bool:
        """Whether the iteration has seen the weight as it is now.

        After a backward pass that reached the weight it counts as changed: some optimizers,
        Pyro's ClippedAdam among them, write through ``.data``, which leaves no other trace.
        """
        if self._gradient_arrived or self._updated_at != self._weight_version():
            return False
        return self._orders_at is None or self._orders_at == self._orders_version()

    def _weight_version(self) -> tuple[int, int]:
        return id(self.weight), self.weight._version

    def _orders_version(self) -> tuple[int, ...]:
        return tuple(order._version for order in self.norm.parameters())

    @torch.no_grad()
    def update(self) -> None:
        """Run the norm's iteration if the weight has changed since it last ran.

        Raises:
            NonFiniteWeightError: if the weight holds nan or infinite values.
        """
        with _UPDATE_LOCK:
            self._watch_gradient()
            if not self.is_current:
                u, v = self._iterated()
                self.u.copy_(u)
                self.v.copy_(v)
                self._scale = None
            self._updated_at = self._weight_version()
            self._orders_at = self._orders_version()
            self._gradient_arrived = False

    def _watch_gradient(self) -> None:
        if self._watched == id(self.weight) or not self.weight.requires_grad:
            return
        this = weakref.ref(self)

        def arrived(weight: Tensor) -> None:
            layer = this()
            if layer is not None:
                layer._gradient_arrived = True

        self.weight.register_post_accumulate_grad_hook(arrived)
        self._watched = id(self.weight)

    @torch.no_grad()
    def _iterated(self) -> tuple[Tensor, Tensor]:
        """The vectors of the iteration for the weight as it is now."""
        u, v = self.u.to(self.weight.dtype), self.v.to(self.weight.dtype)
        try:
            with without_autocast(self.weight):
                return self.norm.iterate(self.operator(self.weight), u, v)
        except RuntimeError as error:  # of the small eigenvalue problem
            if bool(self.weight.isfinite().all()):
                raise
            raise NonFiniteWeightError(
                f"weight of {type(self).__name__} of shape {tuple(self.weight.shape)}: no norm "
                "can be measured, it holds nan or infinite values. Go back to an earlier state."
            ) from error

    def sigma(self) -> Tensor:
        """The measured norm of the raw weight, a scalar, with gradient."""
        if isinstance(self.weight, nn.Parameter):
            self.update()
            u, v = self.u.clone(), self.v.clone()
        else:
            # put in our weight's place for one call, as functional_call does: the vectors that
            # belong to our own weight stay as they are
            u, v = self._iterated()
        with without_autocast(self.weight):
            return self.norm.sigma(self.operator(self.weight), u, v)

    def effective_weight(self) -> Tensor:
        """The weight divided by max(1, sigma/c), same shape as the weight."""
        if torch.is_grad_enabled() or not isinstance(self.weight, nn.Parameter):
            return self.weight * self._contraction(self.sigma())
        self.update()
        if self._scale is None:
            self._scale = self._contraction(self.sigma())
        return self.weight * self._scale

    def _contraction(self, sigma: Tensor) -> Tensor:
        c = self.norm.coefficient
        return c / sigma.clamp_min(c)

    @torch.no_grad()
    def lipschitz_bound(self) -> Tensor:
        """A certified upper bound of the effective weight's norm, a scalar."""
        return self.norm.upper_bound(self.operator(self.effective_weight()))

    # The vectors that go with a weight travel with it: a copy, a loaded state and a moved layer
    # take them as they are, so that they compute what the original computed. The orders of the
    # norm may arrive after the weight, so the first update takes those as they are.

    def _arrived(self, current: bool) -> None:
        self._updated_at = self._weight_version() if current else None
        self._gradient_arrived = False
        self._orders_at = self._scale = None

    def __getstate__(self) -> dict[str, object]:
        state = self.__dict__.copy()
        state.update(_updated_at=None, _orders_at=None, _scale=None, _watched=None)
        state["_current"] = self.is_current
        return state

    def __setstate__(self, state: dict[str, object]) -> None:
        state = dict(state)
        current = bool(state.pop("_current"))
        super().__setstate__(state)
        self._arrived(current)

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        current = self.is_current
        super()._apply(fn, recurse)
        self._arrived(current)
        return self

    def _save_to_state_dict(self, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        with suppress(NonFiniteWeightError):  # a model that has diverged can be saved all the same
            self.update()
        super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        complete = all(prefix + name in state_dict for name in ("weight", "u", "v"))
        self._arrived(complete)


class LipschitzLinear(LipschitzLayer):
    r"""Affine map :math:`W_c x + b` whose matrix is held to a norm.

    Args:
        in_features: size of each input.
        out_features: size of each output.
        norm: the norm and its coefficient; default :class:`SpectralNorm`.
        bias: whether to add b.

    Shapes: ``(*, in_features)`` to ``(*, out_features)``.

    Example:
        >>> import torch
        >>> from pyro_resflow.nn import LipschitzLinear, SpectralNorm
        >>> layer = LipschitzLinear(3, 5, SpectralNorm(0.9))
        >>> bool(layer.lipschitz_bound() < 0.91)
        True
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        norm: OperatorNorm | None = None,
        *,
        bias: bool = True,
    ) -> None:
        self.in_features = in_features
        self.out_features = out_features
        super().__init__(
            (out_features, in_features),
            in_features,
            out_features,
            norm if norm is not None else SpectralNorm(),
            bias,
        )

    def operator(self, weight: Tensor) -> MatrixOperator:
        return MatrixOperator(weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.effective_weight(), self.bias)

    def linearize(self, x: Tensor) -> Linearization:
        weight = self.effective_weight()
        transposed = weight.detach().t()
        return Linearization(
            F.linear(x, weight, self.bias),
            lambda w: F.linear(w, transposed),
            lambda v: F.linear(v, weight),
        )

    def dual_stack(self, z: Tensor) -> Tensor:
        """Value and tangents for ``z = [x, v_1, ..., v_S]`` stacked along dimension 0."""
        out = F.linear(z, self.effective_weight())
        if self.bias is not None:
            out[0] += self.bias
        return out


class LipschitzConv2d(LipschitzLayer):
    r"""Zero-padded convolution of stride 1 whose operator is held to a norm.

    The norm is that of the convolution as a linear map on images of ``input_size``, not of the
    reshaped kernel (which can be smaller by a factor of the kernel's width).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: odd side of the kernel; the image size is preserved.
        input_size: height and width of the images.
        norm: the norm and its coefficient; default :class:`SpectralNorm`.
        bias: whether to add one constant per output channel.

    Shapes: ``(N, in_channels, H, W)`` to ``(N, out_channels, H, W)``.

    Raises:
        ValueError: for an even kernel size.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        input_size: tuple[int, int],
        norm: OperatorNorm | None = None,
        *,
        bias: bool = True,
    ) -> None:
        if kernel_size % 2 == 0:
            raise ValueError(
                f"kernel_size: expected an odd number, which keeps the image size; got "
                f"{kernel_size}."
            )
        self.input_size = input_size
        pixels = input_size[0] * input_size[1]
        super().__init__(
            (out_channels, in_channels, kernel_size, kernel_size),
            in_channels * pixels,
            out_channels * pixels,
            norm if norm is not None else SpectralNorm(),
            bias,
        )
        self.padding = kernel_size // 2

    def operator(self, weight: Tensor) -> LinearOperator:
        return ConvolutionOperator(weight, self.input_size)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.effective_weight(), self.bias, padding=self.padding)

    def linearize(self, x: Tensor) -> Linearization:
        weight = self.effective_weight()
        detached = weight.detach()

        def vjp(w: Tensor) -> Tensor:
            out = F.conv_transpose2d(w.flatten(0, 1), detached, padding=self.padding)
            return out.unflatten(0, w.shape[:2])

        def jvp(v: Tensor) -> Tensor:
            out = F.conv2d(v.flatten(0, 1), weight, padding=self.padding)
            return out.unflatten(0, v.shape[:2])

        return Linearization(F.conv2d(x, weight, self.bias, padding=self.padding), vjp, jvp)

    def dual_stack(self, z: Tensor) -> Tensor:
        """Value and tangents for ``z = [x, v_1, ..., v_S]`` stacked along dimension 0."""
        out = F.conv2d(z.flatten(0, 1), self.effective_weight(), padding=self.padding)
        out = out.unflatten(0, z.shape[:2])
        if self.bias is not None:
            out[0] += self.bias[:, None, None]
        return out
