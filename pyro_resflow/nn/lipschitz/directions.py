"""Start vectors of the norm iterations: unit vectors plus a share of a generic direction."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ...fingerprints import random_vector

GENERIC_SHARE = 0.1
"""Share of a generic vector, which has a component in every direction, in the start vector of an
iteration. After a change of the weight, the last vector can be orthogonal to the leading singular
vector. With this share, a cycle of twelve products finds a singular value that is larger by 3 %,
and also removes the added vector again."""

SCRAMBLED = 2.0**17
"""Factor for the entries of a unit vector. The cosine of the product depends on the last digits of
an entry, so that its sign varies from entry to entry and from update to update."""


def unit(vectors: Tensor) -> Tensor:
    """Scale vectors, ``(L, n)``, to length 1; zero vectors stay zero."""
    size = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return vectors / size.clamp_min(torch.finfo(vectors.dtype).tiny)


def with_generic_share(start: Tensor) -> Tensor:
    """Scale vectors, ``(L, n)``, to length 1 and add a share of a generic direction to each.

    The direction differs from vector to vector and from update to update, so that an update can
    find a singular vector that the last one missed. It depends on the vectors alone, so that a run
    resumed from a checkpoint repeats it.
    """
    start = unit(start)
    scrambled = torch.cos(SCRAMBLED * start)
    return torch.addcmul(start, generic_direction(start[0]), scrambled, value=GENERIC_SHARE)


def nonzero(v: Tensor) -> Tensor:
    """v, or a generic direction if v is zero, because an iteration cannot leave zero."""
    return torch.where(v.any(), v, generic_direction(v))


def generic_direction(v: Tensor) -> Tensor:
    """A fixed unit vector of the shape of v, with a component in every direction."""
    return _generic_direction(len(v), v.dtype, v.device)


@lru_cache(maxsize=256)
@torch.inference_mode(False)
@torch.no_grad()
def _generic_direction(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return unit(random_vector(size, dtype, device)[None])[0]
