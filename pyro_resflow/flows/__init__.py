"""Published flow architectures, assembled from the package's public parts."""

from .conditional import ConditionalImageFlow, ConditionedImageFlow
from .flow_plus_plus import ConditionalFlowPlusPlus, FlowPlusPlus
from .glow import ConditionalGlow, Glow
from .i_resnet import IResNet
from .image_flow import Encoder, ImageFlow
from .jet import ConditionalJet, Jet
from .real_nvp import ConditionalRealNVP, RealNVP
from .recipes import ConvBlock, DenseNetBlock, MLPBlock, NetworkRecipe
from .residual_flow import ConditionalResidualFlow, ResidualFlow
from .vectors import conditional_residual_flow, residual_flow

__all__ = [
    "ConditionalFlowPlusPlus",
    "ConditionalGlow",
    "ConditionalImageFlow",
    "ConditionalJet",
    "ConditionalRealNVP",
    "ConditionalResidualFlow",
    "ConditionedImageFlow",
    "ConvBlock",
    "DenseNetBlock",
    "Encoder",
    "FlowPlusPlus",
    "Glow",
    "IResNet",
    "ImageFlow",
    "Jet",
    "MLPBlock",
    "NetworkRecipe",
    "RealNVP",
    "ResidualFlow",
    "conditional_residual_flow",
    "residual_flow",
]
