"""The base of our transforms: value and log-determinant from one pass, and a safe cache."""

from __future__ import annotations

import copy
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Transform

from ...precision import refuse_half_precision
from ...rebuilding import Rebuildable
from ..summaries.method import Summarized
from .cache import RemembersLastPass
from .determinism import refuse_noise_in_energy, refuse_noise_in_exponential
from .evaluation import clear_cache
from .inverse import Inverse
from .inverse_memory import InverseMemory
from .one_pass import OnePass


class OnePassTransform(
    Rebuildable, InverseMemory, RemembersLastPass, Summarized, OnePass, dist.TransformModule
):
    """A Pyro transform whose value and log-determinant come from one pass.

    Subclasses implement :meth:`call_and_ladj` and ``_inverse``. They may override ``_call`` and
    :meth:`inverse_and_ladj` where one of the two results alone, or both together, cost less.

    The last pass is cached (``cache_size=1``), in each thread its own. A call with the same input
    or output, by identity, finds it again. The log-determinant is handed out once: asking again
    asks for another estimate. The cache is safe: a pass is not used again once a parameter, a
    buffer, the input or the output has changed, or wants gradients where it did not; once a module
    inside has changed between training and evaluation; in another gradient mode or under another
    autocast; or once a backward pass has gone through it. Results of ``torch.inference_mode`` are
    not cached, because changes to them leave no trace.

    With gradients enabled, either direction computes the log-determinant along with the value,
    since training needs both. Without gradients, as when distributions draw samples, it does not.

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
        """y and log|dy/dx|, the latter of shape ``x.shape[:-domain.event_dim]``; not cached."""
        raise NotImplementedError

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """x and log|dy/dx| (of the forward direction) at it; not cached."""
        x = self._inverse(y)
        return x, self.call_and_ladj(x)[1]

    def _call(self, x: Tensor) -> Tensor:
        return self.call_and_ladj(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        raise NotImplementedError

    def __call__(self, x: Tensor) -> Tensor:
        """The transform x => y."""
        refuse_half_precision(self)
        known = self._known_pair(x=x)
        if known is not None:
            return known[1]
        if self._cache_size == 0:
            return self._call(x)
        if torch.is_grad_enabled():
            y, ladj = self.call_and_ladj(x)
            self._remember(x, y, ladj)
        else:
            y = self._call(x)
            self._remember(x, y, None)
        return y

    def _inv_call(self, y: Tensor) -> Tensor:
        refuse_half_precision(self)
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
            NoisyEnergyError: if HMC or NUTS asks and the log-determinant is noisy.
            NoisyExponentialError: if it is noisy and would be exponentiated, as in weights,
                Rényi bounds, mixtures and enumeration.
        """
        refuse_half_precision(self)
        refuse_noise_in_energy(self)
        refuse_noise_in_exponential(self, x, y)
        last = self._last_pass(x, y)
        if last is None or last.ladj is None or last.pair_given(*self._surroundings()) is None:
            return self.call_and_ladj(x)[1]
        return last.take_ladj()

    @property
    def inv(self) -> Transform:
        """The inverse, a TransformModule with these parameters; ``t.inv.inv is t``."""
        return self._remembered_inverse() or Inverse(self)

    def with_cache(self, cache_size: int = 1) -> OnePassTransform:
        """This transform, sharing its parameters, with another cache size."""
        if cache_size not in (0, 1):
            raise ValueError(f"cache_size: expected 0 or 1, got {cache_size}.")
        if cache_size == self._cache_size:
            return self
        other = copy.copy(self)
        other._cache_size = cache_size
        return other

    def clear_cache(self) -> None:
        """Forget the last pass, here and in the transforms inside."""
        clear_cache(self)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_inv": None}
