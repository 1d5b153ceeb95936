"""Trained flows as NumPyro transforms, with the same weights.

:func:`to_numpyro` returns a pytree of JAX arrays that does not depend on torch: it works with
``jit``, ``vmap`` and ``grad``, and in NumPyro's models and kernels.
"""

from . import (  # noqa: F401 (registers translations)
    conditioners,
    convolutions,
    image_translation,
    transformer,
)
from .couplings import (
    ConditionalCouplingTransform,
    ConditionedCouplingTransform,
    CouplingTransform,
    HalvesTransform,
)
from .images import (
    ChannelPermutationTransform,
    ConditionalSplitTransform,
    Conv1x1Transform,
    LogitTransform,
    SplitTransform,
    SqueezeTransform,
)
from .labels import LabelledTransform
from .layers import to_jax
from .logdet import Exact, Krylov
from .maps import to_jax_map
from .marginals import MarginalGaussianizationTransform
from .transforms import (
    ConditionalCompose,
    ConditionalInverse,
    ConditionalResidualTransform,
    MonotoneTransform,
    ResidualTransform,
    with_logdet,
)
from .translated import Composition
from .translation import to_numpyro

__all__ = [
    "ChannelPermutationTransform",
    "Composition",
    "ConditionalCompose",
    "ConditionalCouplingTransform",
    "ConditionalInverse",
    "ConditionalResidualTransform",
    "ConditionalSplitTransform",
    "ConditionedCouplingTransform",
    "Conv1x1Transform",
    "CouplingTransform",
    "Exact",
    "HalvesTransform",
    "Krylov",
    "LabelledTransform",
    "LogitTransform",
    "MarginalGaussianizationTransform",
    "MonotoneTransform",
    "ResidualTransform",
    "SplitTransform",
    "SqueezeTransform",
    "to_jax",
    "to_jax_map",
    "to_numpyro",
    "with_logdet",
]
