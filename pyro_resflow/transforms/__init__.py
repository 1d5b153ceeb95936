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
from .coupling_step import CouplingStep
from .dequantization import (
    ConditionedUniformDequantization,
    Dequantization,
    UniformDequantization,
)
from .determinism import (
    NoisyEnergyError,
    NoisyExponentialError,
    is_deterministic,
    set_logdet,
    temporary_logdet,
)
from .elementwise import ActNorm, Logit
from .elementwise_maps import (
    AffineMap,
    BoundedLogScale,
    ElementwiseMap,
    LearnedLogScale,
    SigmoidScale,
)
from .features import image_features
from .full_image import OnFullImage
from .halves import OnHalves
from .initialization import initialize
from .inverse import Inverse
from .invertible_conv import InvertibleConv1x1
from .logistic_mixture import LogisticMixtureMap
from .masks import ChannelHalves, Checkerboard, Columns, Mask
from .monotone import Monotone, monotone
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
from .variational_dequantization import (
    ConditionedVariationalDequantization,
    VariationalDequantization,
)

__all__ = [
    "ActNorm",
    "AffineMap",
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
    "ConditionedVariationalDequantization",
    "Coupling",
    "CouplingStep",
    "CouplingTransform",
    "Dequantization",
    "ElementwiseMap",
    "Flatten",
    "Inverse",
    "InvertibleConv1x1",
    "LearnedLogScale",
    "LogisticMixtureMap",
    "Logit",
    "Mask",
    "Monotone",
    "Multiscale",
    "NoisyEnergyError",
    "NoisyExponentialError",
    "OnFullImage",
    "OnHalves",
    "OnePassTransform",
    "Residual",
    "SigmoidScale",
    "Split",
    "SplitPrior",
    "Squeeze",
    "TriangularAffine",
    "UniformDequantization",
    "VariationalDequantization",
    "conditional_residual",
    "image_features",
    "initialize",
    "is_deterministic",
    "monotone",
    "residual",
    "set_logdet",
    "temporary_logdet",
]
