"""Ready-made flows: short assemblies of the public parts."""

from .i_resnet import IResNet
from .image_flow import Encoder, ImageFlow
from .recipes import ConvBlock, DenseNetBlock, MLPBlock, NetworkRecipe
from .residual_flow import ResidualFlow
from .vectors import conditional_residual_flow, residual_flow

__all__ = [
    "ConvBlock",
    "DenseNetBlock",
    "Encoder",
    "IResNet",
    "ImageFlow",
    "MLPBlock",
    "NetworkRecipe",
    "ResidualFlow",
    "conditional_residual_flow",
    "residual_flow",
]
