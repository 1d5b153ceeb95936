"""The stages of a network, and their linearization at a point."""

from .affine import Affine, AffineLayer, AffineSaved, Products
from .concatenate import Concatenate
from .core import BothSigns, Core, ElementwiseCore
from .elementwise import Elementwise, HyperbolicTangent, Swish
from .folding import folded
from .gate import Gate, LinearizedGate
from .network import StagedNetwork
from .perceptron import LinearizedPerceptron, is_perceptron
from .scale import Scale, Translate
from .sequence import LinearizedStages, evaluate
from .stage import Gain, Gradients, Layer, Stage, inner_product, product, reusable, scaled

__all__ = [
    "Affine",
    "AffineLayer",
    "AffineSaved",
    "BothSigns",
    "Concatenate",
    "Core",
    "Elementwise",
    "ElementwiseCore",
    "Gain",
    "Gate",
    "Gradients",
    "HyperbolicTangent",
    "Layer",
    "LinearizedGate",
    "LinearizedPerceptron",
    "LinearizedStages",
    "Products",
    "Scale",
    "Stage",
    "StagedNetwork",
    "Swish",
    "Translate",
    "evaluate",
    "folded",
    "inner_product",
    "is_perceptron",
    "product",
    "reusable",
    "scaled",
]
