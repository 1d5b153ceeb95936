"""Pyro transforms: every one a bijective ``TransformModule`` or ``ConditionalTransformModule``."""

from .affine import TriangularAffine
from .base import OnePassTransform
from .batch_norm import BatchNorm
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
from .coupling import ConditionalCoupling, ConditionedCoupling, Coupling, CouplingTransform
from .dequantization import ConditionedUniformDequantization, UniformDequantization
from .determinism import NoisyEnergyError, is_deterministic, set_logdet
from .elementwise import ActNorm, Logit
from .elementwise_maps import (
    Affine,
    BoundedLogScale,
    ElementwiseMap,
    LearnedLogScale,
    SigmoidScale,
)
from .full_image import OnFullImage
from .initialization import initialize
from .inverse import Inverse
from .invertible_conv import InvertibleConv1x1
from .logistic_mixture import LogisticMixture
from .masks import ChannelHalves, Checkerboard, Columns, Mask
from .multiscale import Flatten, Multiscale, Split, Squeeze
from .permutation import ChannelPermutation
from .residual import (
    ConditionalResidual,
    ConditionedResidual,
    Residual,
    conditional_residual,
    residual,
)
from .split_prior import SplitPrior

__all__ = [
    "ActNorm",
    "Affine",
    "BatchNorm",
    "BoundedLogScale",
    "ChannelHalves",
    "ChannelPermutation",
    "Checkerboard",
    "Columns",
    "Compose",
    "ConditionalAffine",
    "ConditionalBijection",
    "ConditionalCompose",
    "ConditionalCoupling",
    "ConditionalInverse",
    "ConditionalResidual",
    "ConditionedAffine",
    "ConditionedCompose",
    "ConditionedCoupling",
    "ConditionedResidual",
    "ConditionedTransform",
    "ConditionedUniformDequantization",
    "Coupling",
    "CouplingTransform",
    "ElementwiseMap",
    "Flatten",
    "Inverse",
    "InvertibleConv1x1",
    "LearnedLogScale",
    "LogisticMixture",
    "Logit",
    "Mask",
    "Multiscale",
    "NoisyEnergyError",
    "OnFullImage",
    "OnePassTransform",
    "Residual",
    "SigmoidScale",
    "Split",
    "SplitPrior",
    "Squeeze",
    "TriangularAffine",
    "UniformDequantization",
    "conditional_residual",
    "initialize",
    "is_deterministic",
    "residual",
    "set_logdet",
]
