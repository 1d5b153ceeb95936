"""The base class of transforms: value and log-determinant from one pass, and a safe cache."""

from __future__ import annotations

import copy
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Transform

from ...compilation import is_compiled, refuse_compilation
from ...precision import refuse_half_precision
from ...rebuilding import Rebuildable
from ..summaries.method import Summarized
from .cache import RemembersLastPass
from .determinism import EstimatesLogDet, refuse_noise_in_energy, refuse_noise_in_exponential
from .evaluation import clear_cache
from .inverse import Inverse
from .inverse_memory import InverseMemory
from .one_pass import OnePass


class OnePassTransform(
    Rebuildable, InverseMemory, RemembersLastPass, Summarized, OnePass, dist.TransformModule
):
    """A Pyro transform whose value and log-determinant come from one pass.

    Subclasses implement :meth:`call_and_ladj` and ``_inverse``. They may override ``_call`` where
    the value alone costs less, and :meth:`inverse_and_ladj` where both together do.

    With ``cache_size=1`` each thread caches its last pass and finds it again by the identity of
    the input or the output. The cache returns a log-determinant once: a second call of
    :meth:`log_abs_det_jacobian` draws a new estimate. A cached pass is not reused

    - when a parameter, a buffer, the input or the output has changed its value or its
      ``requires_grad``,
    - when a module inside has switched between training and evaluation mode,
    - in another gradient mode or under another autocast, and
    - after a backward pass through it.

    Results of ``torch.inference_mode`` are not cached, because in-place changes to them cannot be
    detected.

    With gradients enabled, both directions compute the log-determinant along with the value,
    since training needs both. Without gradients, as when distributions draw samples, they compute
    the value alone.

    Args:
        cache_size: 0 or 1.
    """

    bijective = True

    def __init__(self, *, cache_size: int = 1) -> None:
        super().__init__(cache_size=cache_size)

    @property
    def event_dims(self) -> tuple[int, int]:
        """Event dimensions of the domain and of the codomain."""
        return self.domain.event_dim, self.codomain.event_dim

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y and log|dy/dx|; the latter has shape ``x.shape[:-domain.event_dim]``. Not cached."""
        raise NotImplementedError

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """x and the forward direction's log|dy/dx| at x. Not cached."""
        x = self._inverse(y)
        return x, self.call_and_ladj(x)[1]

    def _call(self, x: Tensor) -> Tensor:
        return self.call_and_ladj(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        raise NotImplementedError

    def _check_use(self) -> None:
        refuse_half_precision(self)
        self._check_compilation()

    def _check_compilation(self) -> None:
        if is_compiled() and any(isinstance(part, EstimatesLogDet) for part in self.modules()):
            refuse_compilation(type(self).__name__)

    def __call__(self, x: Tensor) -> Tensor:
        """The transform x => y."""
        self._check_use()
        known = self._known_pair(x=x)
        if known is not None:
            return known[1]
        if self._cache_size == 0:
            return self._call(x)
        if torch.is_grad_enabled():
            y, ladj = self.call_and_ladj(x)
            self._remember_for_log_prob(x, y, ladj)
        else:
            y = self._call(x)
            self._remember(x, y, None)
        return y

    def _inv_call(self, y: Tensor) -> Tensor:
        self._check_use()
        known = self._known_pair(y=y)
        if known is not None:
            return known[0]
        if self._cache_size == 0:
            return self._inverse(y)
        if torch.is_grad_enabled():
            x, ladj = self.inverse_and_ladj(y)
            self._remember(x, y, ladj)
        else:
            x = self._inverse(y)
            self._remember(x, y, None)
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log|dy/dx| at x, shape ``x.shape[:-domain.event_dim]``.

        Raises:
            NoisyEnergyError: if HMC or NUTS calls this and the log-determinant is noisy.
            NoisyExponentialError: if the log-determinant is noisy and the caller exponentiates
                it, as for importance weights, Rényi bounds, mixtures and enumeration.
        """
        self._check_use()
        refuse_noise_in_energy(self)
        refuse_noise_in_exponential(self, x, y)
        last = self._last_pass(x, y)
        if last is None or last.ladj is None or not self._is_valid(last):
            return self.call_and_ladj(x)[1]
        return last.take_ladj()

    @property
    def inv(self) -> Transform:
        """The inverse, a TransformModule that shares these parameters; ``t.inv.inv is t``."""
        self._check_compilation()  # the compiler fails with an error of its own to build a module
        return self._remembered_inverse() or Inverse(self)

    def with_cache(self, cache_size: int = 1) -> OnePassTransform:
        """A copy with another cache size that shares the parameters."""
        if cache_size not in (0, 1):
            raise ValueError(f"cache_size: expected 0 or 1, got {cache_size}.")
        if cache_size == self._cache_size:
            return self
        other = copy.copy(self)
        other._cache_size = cache_size
        return other

    def clear_cache(self) -> None:
        """Discard the cached pass of this transform and of the transforms inside it."""
        clear_cache(self)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_inv": None}
