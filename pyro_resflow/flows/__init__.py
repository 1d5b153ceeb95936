"""Published flow architectures, assembled from the package's public parts."""

from .flow_plus_plus import FlowPlusPlus
from .glow import Glow
from .i_resnet import IResNet
from .image_flow import Encoder, ImageFlow
from .real_nvp import RealNVP
from .recipes import ConvBlock, DenseNetBlock, MLPBlock, NetworkRecipe
from .residual_flow import ResidualFlow
from .vectors import conditional_residual_flow, residual_flow

__all__ = [
    "ConvBlock",
    "DenseNetBlock",
    "Encoder",
    "FlowPlusPlus",
    "Glow",
    "IResNet",
    "ImageFlow",
    "MLPBlock",
    "NetworkRecipe",
    "RealNVP",
    "ResidualFlow",
    "conditional_residual_flow",
    "residual_flow",
]
