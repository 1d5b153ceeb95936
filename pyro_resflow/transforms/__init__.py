"""Pyro transforms. Each is a bijective ``TransformModule`` or ``ConditionalTransformModule``."""

from .conditional_affine import ConditionalAffine, ConditionedAffine
from .contractive.monotone import Monotone, monotone
from .contractive.residual import (
    ConditionalResidual,
    ConditionedResidual,
    Residual,
    conditional_residual,
    residual,
)
from .core.compose import Compose
from .core.conditional import (
    ConditionalBijection,
    ConditionalCompose,
    ConditionalInverse,
    ConditionedCompose,
    ConditionedTransform,
)
from .core.determinism import (
    NoisyEnergyError,
    NoisyExponentialError,
    is_deterministic,
    set_logdet,
    temporary_logdet,
)
from .core.features import image_features
from .core.initialization import initialize
from .core.inverse import Inverse
from .core.one_pass_transform import OnePassTransform
from .couplings.coupling import (
    ConditionalCoupling,
    ConditionedCoupling,
    Coupling,
    CouplingTransform,
)
from .couplings.every_pixel import AtEveryPixel
from .couplings.full_image import OnFullImage
from .couplings.halves import OnHalves
from .couplings.logistic_mixture import LogisticMixtureMap
from .couplings.maps import (
    AffineMap,
    BoundedLogScale,
    ElementwiseMap,
    LearnedLogScale,
    SigmoidScale,
)
from .couplings.masks import ChannelHalves, Checkerboard, Columns, Mask, Rows
from .couplings.step import CouplingStep
from .images.conditional_multiscale import (
    ConditionalMultiscale,
    ConditionalSplit,
    ConditionedSplit,
)
from .images.dequantization import (
    ConditionedUniformDequantization,
    Dequantization,
    UniformDequantization,
)
from .images.multiscale import Flatten, Multiscale, Split, Squeeze
from .images.split_prior import SplitPrior
from .images.variational_dequantization import (
    ConditionedVariationalDequantization,
    VariationalDequantization,
)
from .linear.invertible_conv import InvertibleConv1x1
from .linear.permutation import ChannelPermutation
from .linear.triangular import TriangularAffine
from .logit import Logit
from .normalization.act_norm import ActNorm
from .normalization.batch_norm import BatchNorm
from .normalization.marginal_gaussianization import MarginalGaussianization
from .summaries.summary import Summary, summary

__all__ = [
    "ActNorm",
    "AffineMap",
    "AtEveryPixel",
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
    "ConditionalMultiscale",
    "ConditionalResidual",
    "ConditionalSplit",
    "ConditionedAffine",
    "ConditionedCompose",
    "ConditionedCoupling",
    "ConditionedResidual",
    "ConditionedSplit",
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
    "MarginalGaussianization",
    "Mask",
    "Monotone",
    "Multiscale",
    "NoisyEnergyError",
    "NoisyExponentialError",
    "OnFullImage",
    "OnHalves",
    "OnePassTransform",
    "Residual",
    "Rows",
    "SigmoidScale",
    "Split",
    "SplitPrior",
    "Squeeze",
    "Summary",
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
    "summary",
    "temporary_logdet",
]
