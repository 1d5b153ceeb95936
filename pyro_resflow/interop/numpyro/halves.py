"""The kept and the changed half of an event, as index arrays."""

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
    """The indices of the kept and the changed entries; hashable, because JAX treats it as static.

    Attributes:
        event_shape: shape of an event.
        kept: indices of the kept entries in the flattened event.
        kept_shape: shape of the kept half.
        changed: indices of the changed entries in the flattened event.
        changed_shape: shape of the changed half.
    """

    event_shape: tuple[int, ...]
    kept: tuple[int, ...]
    kept_shape: tuple[int, ...]
    changed: tuple[int, ...]
    changed_shape: tuple[int, ...]

    @classmethod
    def of(cls, mask: Mask) -> Halves:
        """The halves of a mask, found by splitting an array of indices."""
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
        """Split x, shape ``(*batch, *event_shape)``, into its kept and its changed half."""
        batch = x.shape[: x.ndim - len(self.event_shape)]
        flat = x.reshape(*batch, -1)
        kept = flat[..., np.array(self.kept)].reshape(*batch, *self.kept_shape)
        return kept, flat[..., np.array(self.changed)].reshape(*batch, *self.changed_shape)

    def merge(self, kept: Array, changed: Array) -> Array:
        """Join two halves into events of shape ``(*batch, *event_shape)``."""
        batch = kept.shape[: kept.ndim - len(self.kept_shape)]
        flat = jnp.concatenate([kept.reshape(*batch, -1), changed.reshape(*batch, -1)], axis=-1)
        return flat[..., self._order].reshape(*batch, *self.event_shape)

    @cached_property
    def _order(self) -> np.ndarray:
        return np.argsort(np.array([*self.kept, *self.changed]))
