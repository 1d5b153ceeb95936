"""The default estimator of a block."""

from __future__ import annotations

import torch

from .estimator import LogDetEstimator
from .exact import Exact
from .krylov import Krylov

EXACT_BY_DEFAULT_UP_TO = 8
"""Number of dimensions up to which the full Jacobian costs about as much as an estimate."""


def default_logdet(
    event_shape: torch.Size | None, *, exact_up_to: int = EXACT_BY_DEFAULT_UP_TO
) -> LogDetEstimator:
    """The exact log-determinant for small events, an unbiased estimate for larger ones.

    Args:
        event_shape: the event shape, ``None`` if it is not known.
        exact_up_to: the largest number of dimensions that count as small.
    """
    small = event_shape is not None and event_shape.numel() <= exact_up_to
    return Exact() if small else Krylov()
