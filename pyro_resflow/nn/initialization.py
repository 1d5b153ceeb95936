"""Modules whose first batch sets their parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..rebuilding import Rebuildable


class DataInitialized(Rebuildable, nn.Module):
    """A module whose parameters are set by the first batch that passes.

    The flag that this has happened is a buffer, so that it is saved. Subclasses call
    :meth:`_start` once in their constructor; at each call they ask :meth:`_awaits_batch`, and
    where it says so set their parameters by :meth:`_statistics` and call :meth:`_settle`.
    """

    minimum_std = 1e-4
    """Features that vary less are scaled as if they varied by this."""

    initialized: Tensor

    def await_batch(self) -> None:
        """Let the next batch set the parameters, whether or not one has done so before."""
        self.initialized.fill_(False)
        self._seen_initialized = False

    def _start(self, initialized: bool) -> None:
        self.register_buffer("initialized", torch.tensor(initialized))
        # the buffer's value on the host, so that only the first calls wait for the device
        self._seen_initialized = initialized

    def _awaits_batch(self, x: Tensor) -> bool:
        if not self._seen_initialized and not x.is_meta:
            self._seen_initialized = bool(self.initialized)
            return not self._seen_initialized
        return False

    @torch.no_grad()
    def _statistics(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, shape ``(F,)``, of features of shape ``(N, F, *)``."""
        name = type(self).__name__
        if len(samples) < 2:
            raise ValueError(
                f"x: this {name} is not initialised yet, and a single sample has no standard "
                "deviation; pass a batch of at least two first (an ActNorm can also be built "
                "with initialized=True)."
            )
        if not bool(samples.isfinite().all()):
            raise ValueError(
                f"x: the batch that is to initialise this {name} holds nan or infinite values; "
                "pass finite ones."
            )
        features = samples.transpose(0, 1).flatten(1)
        return features.mean(1), features.std(1).clamp_min(self.minimum_std)

    def _settle(self) -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # each process has seen a batch of its own; from here on they have to agree
            for parameter in self.parameters(recurse=False):
                torch.distributed.broadcast(parameter, src=0)
        self.initialized.fill_(True)
        self._seen_initialized = True

    def _load_from_state_dict(self, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        super()._load_from_state_dict(*args, **kwargs)
        self._seen_initialized = False
