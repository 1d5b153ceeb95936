"""Pyro transforms: every one a bijective ``TransformModule`` or ``ConditionalTransformModule``."""

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
from .elementwise import ActNorm, Logit
from .inverse import Inverse
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
    "Multiscale",
    "OnePassTransform",
    "Residual",
    "Split",
    "Squeeze",
    "UniformDequantization",
    "conditional_residual",
    "residual",
]
