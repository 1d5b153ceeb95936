"""Transforms that act on each entry alone."""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn import functional as F

from .base import OnePassTransform, check_event_shape

_INITIALISATION = threading.Lock()


class Logit(OnePassTransform):
    r"""Pixels to the real line, :math:`y = \mathrm{logit}(\alpha + (1 - 2\alpha)\,x)`.

    A bijection of the interval :math:`(-\alpha, 1-\alpha)/(1-2\alpha)`, a little more than [0, 1],
    to the real line.

    Args:
        alpha: margin that keeps 0 and 1 away from infinity, in [0, 0.5).
        event_dim: event dimensions over which the log-determinant is summed.
        cache_size: 0 or 1.

    Raises:
        ValueError: for an alpha outside [0, 0.5).

    Reference:
        Dinh, Sohl-Dickstein and Bengio, Density Estimation Using Real NVP, 2017, section 4.1.
    """

    def __init__(self, alpha: float = 0.05, *, event_dim: int = 0, cache_size: int = 1) -> None:
        super().__init__(cache_size=cache_size)
        if not 0 <= alpha < 0.5:
            raise ValueError(f"alpha: expected a number in [0, 0.5), got {alpha}.")
        self.alpha = alpha
        self._event_dim = event_dim

    @constraints.dependent_property(is_discrete=False)
    def domain(self) -> constraints.Constraint:
        margin = self.alpha / (1 - 2 * self.alpha)
        return _independent(constraints.interval(-margin, 1 + margin), self._event_dim)

    @constraints.dependent_property(is_discrete=False)
    def codomain(self) -> constraints.Constraint:
        return _independent(constraints.real, self._event_dim)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.logit(self.alpha + (1 - 2 * self.alpha) * x)
        return y, self._ladj(y)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._inverse(y), self._ladj(y)

    def _inverse(self, y: Tensor) -> Tensor:
        return (torch.sigmoid(y) - self.alpha) / (1 - 2 * self.alpha)

    def _ladj(self, y: Tensor) -> Tensor:
        entries = math.log1p(-2 * self.alpha) + F.softplus(y) + F.softplus(-y)
        return entries.sum(tuple(range(-self._event_dim, 0))) if self._event_dim else entries


class ActNorm(OnePassTransform):
    r"""Learned scale and shift per feature, :math:`y = e^s x + b`, set by the first batch.

    The first batch that passes, in either direction, comes out with mean 0 and standard deviation
    1 in every feature. The flag that this has happened is a buffer, so that it is saved.

    Args:
        num_features: entries of a vector, or channels of an image.
        event_dim: 1 for vectors ``(*, D)``, 3 for images ``(*, C, H, W)``.
        initialized: start as the identity instead of waiting for a batch: for flows whose fast
            direction starts from standard noise.
        cache_size: 0 or 1.

    Raises:
        ValueError: if the first batch is a single sample, which has no standard deviation.

    Reference:
        Kingma and Dhariwal, Glow, 2018, section 3.1.
    """

    minimum_std = 1e-4
    """Features that vary less are scaled as if they varied by this."""

    initialized: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        event_dim: int = 1,
        initialized: bool = False,
        cache_size: int = 1,
    ) -> None:
        super().__init__(cache_size=cache_size)
        if event_dim not in (1, 3):
            raise ValueError(f"event_dim: expected 1 (vectors) or 3 (images), got {event_dim}.")
        self.num_features = num_features
        self._event_dim = event_dim
        self.log_scale = nn.Parameter(torch.zeros(num_features))
        self.shift = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("initialized", torch.tensor(initialized))
        # the buffer's value on the host, so that only the first calls wait for the device
        self._seen_initialized = initialized

    @constraints.dependent_property(is_discrete=False)
    def domain(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, self._event_dim)

    codomain = domain

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self._call(x)
        return y, self._ladj(x)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        x = self._inverse(y)
        return x, self._ladj(x)

    def _call(self, x: Tensor) -> Tensor:
        if self._awaits_batch("x", x):
            mean, std = self._statistics(x)
            self._set(-std.log(), -mean / std)
        return x * self._spread(self.log_scale.exp()) + self._spread(self.shift)

    def _inverse(self, y: Tensor) -> Tensor:
        if self._awaits_batch("y", y):
            mean, std = self._statistics(y)
            self._set(std.log(), mean)
        return (y - self._spread(self.shift)) * self._spread((-self.log_scale).exp())

    def _ladj(self, x: Tensor) -> Tensor:
        entries = x[(0,) * (x.dim() - self._event_dim)].numel() if x.numel() else 0
        total = self.log_scale.sum() * (entries // self.num_features)
        return total.expand(x.shape[: x.dim() - self._event_dim])

    def _spread(self, features: Tensor) -> Tensor:
        return features.reshape(-1, *[1] * (self._event_dim - 1))

    def _awaits_batch(self, name: str, x: Tensor) -> bool:
        event_shape = (self.num_features, *x.shape[x.dim() - self._event_dim + 1 :])
        check_event_shape(name, x, event_shape)
        if self._seen_initialized or x.is_meta:
            return False
        self._seen_initialized = bool(self.initialized)
        if not self._seen_initialized and x.shape[: x.dim() - self._event_dim].numel() < 2:
            raise ValueError(
                f"{name}: this ActNorm is not initialised yet, and a single sample has no "
                "standard deviation; pass a batch of at least two first, or build the ActNorm "
                "with initialized=True."
            )
        return not self._seen_initialized

    @torch.no_grad()
    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = x.movedim(x.dim() - self._event_dim, 0).flatten(1).to(self.shift.dtype)
        if not bool(features.isfinite().all()):
            raise ValueError(
                "the batch that is to initialise this ActNorm holds nan or infinite values; pass "
                "finite ones."
            )
        return features.mean(1), features.std(1).clamp_min(self.minimum_std)

    @torch.no_grad()
    def _set(self, log_scale: Tensor, shift: Tensor) -> None:
        with _INITIALISATION:
            if self._seen_initialized:  # another thread was first
                return
            self.log_scale.copy_(log_scale)
            self.shift.copy_(shift)
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                # each process has seen a batch of its own; from here on they have to agree
                torch.distributed.broadcast(self.log_scale, src=0)
                torch.distributed.broadcast(self.shift, src=0)
            self.initialized.fill_(True)
            self._seen_initialized = True

    def _load_from_state_dict(self, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        super()._load_from_state_dict(*args, **kwargs)
        self._seen_initialized = False


def _independent(constraint: constraints.Constraint, event_dim: int) -> constraints.Constraint:
    return constraints.independent(constraint, event_dim) if event_dim else constraint
