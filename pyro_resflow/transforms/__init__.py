"""Pyro transforms: every one a bijective ``TransformModule`` or ``ConditionalTransformModule``."""

from .affine import TriangularAffine
from .base import OnePassTransform
from .compose import Compose
from .conditional import (
    ConditionalAffine,
    ConditionalBijection,
    ConditionalCompose,
    ConditionalInverse,
    ConditionedAffine,
    ConditionedCompose,
    ConditionedTransform,
)
from .dequantization import ConditionedUniformDequantization, UniformDequantization
from .determinism import NoisyEnergyError, is_deterministic, set_logdet, temporary_logdet
from .elementwise import ActNorm, Logit
from .features import image_features
from .inverse import Inverse
from .monotone import Monotone, monotone
from .multiscale import Flatten, Multiscale, Split, Squeeze
from .residual import (
    ConditionalResidual,
    ConditionedResidual,
    Residual,
    conditional_residual,
    residual,
)

__all__ = [
    "ActNorm",
    "Compose",
    "ConditionalAffine",
    "ConditionalBijection",
    "ConditionalCompose",
    "ConditionalInverse",
    "ConditionalResidual",
    "ConditionedAffine",
    "ConditionedCompose",
    "ConditionedResidual",
    "ConditionedTransform",
    "ConditionedUniformDequantization",
    "Flatten",
    "Inverse",
    "Logit",
    "Monotone",
    "Multiscale",
    "NoisyEnergyError",
    "OnePassTransform",
    "Residual",
    "Split",
    "Squeeze",
    "TriangularAffine",
    "UniformDequantization",
    "conditional_residual",
    "image_features",
    "is_deterministic",
    "monotone",
    "residual",
    "set_logdet",
    "temporary_logdet",
]
