"""Trained residual flows of vectors as NumPyro transforms, with the same weights.

:func:`to_numpyro` translates once; what it returns is a pytree of JAX arrays that knows nothing of
torch: it goes through ``jit``, ``vmap`` and ``grad``, and into NumPyro's models and kernels.
"""

from .layers import to_jax
from .transforms import (
    ConditionalCompose,
    ConditionalInverse,
    ConditionalResidualTransform,
    MonotoneTransform,
    ResidualTransform,
)
from .translation import to_numpyro

__all__ = [
    "ConditionalCompose",
    "ConditionalInverse",
    "ConditionalResidualTransform",
    "MonotoneTransform",
    "ResidualTransform",
    "to_jax",
    "to_numpyro",
]
