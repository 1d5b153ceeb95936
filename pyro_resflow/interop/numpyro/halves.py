"""The two halves of an event that a mask of torch's couplings tells apart."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from ...extras import extra
from ...transforms import Mask

with extra("numpyro"):
    import jax.numpy as jnp
    from jax import Array


@dataclass(frozen=True)
class Halves:
    """Which entries of an event are kept, and which are changed; hashable, for it is static.

    Attributes:
        event_shape: shape of an event.
        kept: places of the kept entries in the flattened event.
        kept_shape: shape of the kept half.
        changed: places of the changed ones.
        changed_shape: shape of the changed half.
    """

    event_shape: tuple[int, ...]
    kept: tuple[int, ...]
    kept_shape: tuple[int, ...]
    changed: tuple[int, ...]
    changed_shape: tuple[int, ...]

    @classmethod
    def of(cls, mask: Mask) -> Halves:
        """The halves of any mask, read off the places of its entries."""
        shape = torch.Size(mask.event_shape)
        kept, changed = mask.split(torch.arange(shape.numel()).reshape(shape))
        return cls(
            tuple(shape),
            tuple(kept.flatten().tolist()),
            tuple(kept.shape),
            tuple(changed.flatten().tolist()),
            tuple(changed.shape),
        )

    def split(self, x: Array) -> tuple[Array, Array]:
        """The kept and the changed half of ``(*batch, *event_shape)``."""
        batch = x.shape[: x.ndim - len(self.event_shape)]
        flat = x.reshape(*batch, -1)
        kept = flat[..., np.array(self.kept)].reshape(*batch, *self.kept_shape)
        return kept, flat[..., np.array(self.changed)].reshape(*batch, *self.changed_shape)

    def merge(self, kept: Array, changed: Array) -> Array:
        """The events whose halves these are."""
        batch = kept.shape[: kept.ndim - len(self.kept_shape)]
        flat = jnp.concatenate([kept.reshape(*batch, -1), changed.reshape(*batch, -1)], axis=-1)
        return flat[..., self._order].reshape(*batch, *self.event_shape)

    @cached_property
    def _order(self) -> np.ndarray:
        return np.argsort(np.array([*self.kept, *self.changed]))
