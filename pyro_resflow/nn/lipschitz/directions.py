"""Directions to start an iteration from: unit vectors, with a share of a generic direction."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ...fingerprints import random_vector

GENERIC_SHARE = 0.1
"""The share of a generic vector, with a component in every direction, in the vector that an
iteration starts from. After a change of the weight the last vector can be orthogonal to the
largest singular vector. With this share a cycle of twelve products finds a singular value that is
larger by 3 %, and removes again what was added."""

SCRAMBLED = 2.0**17
"""The cosine of this times an entry of a unit vector depends on the last digits of the entry: it
takes another sign for each entry, and after each update."""


def unit(vectors: Tensor) -> Tensor:
    """Vectors of length 1, shape ``(L, n)``; zero stays zero."""
    size = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return vectors / size.clamp_min(torch.finfo(vectors.dtype).tiny)


def with_generic_share(start: Tensor) -> Tensor:
    """Unit vectors, ``(L, n)``, plus a share of a generic direction, a different one for each.

    The direction is also different after each update, so that an update finds what the last one
    missed. It is a function of the vectors: a run that continues from a file repeats it.
    """
    start = unit(start)
    scrambled = torch.cos(SCRAMBLED * start)
    return torch.addcmul(start, generic_direction(start[0]), scrambled, value=GENERIC_SHARE)


def nonzero(v: Tensor) -> Tensor:
    """v, or a generic direction if v vanished, since an iteration cannot leave zero."""
    return torch.where(v.any(), v, generic_direction(v))


def generic_direction(v: Tensor) -> Tensor:
    """A fixed unit vector of the shape of v, with a component in every direction."""
    return _generic_direction(len(v), v.dtype, v.device)


@lru_cache(maxsize=256)
@torch.inference_mode(False)
@torch.no_grad()
def _generic_direction(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return unit(random_vector(size, dtype, device)[None])[0]
