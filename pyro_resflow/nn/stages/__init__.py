"""The stages of a network, and their linearization at a point."""

from .affine import Affine, AffineLayer
from .concatenate import Concatenate
from .core import BothSigns, Core, ElementwiseCore
from .folding import folded
from .perceptron import LinearizedPerceptron, is_perceptron
from .scale import Scale, Translate
from .sequence import LinearizedStages, evaluate
from .stage import Gain, Gradients, Layer, Stage, inner_product, product, reusable, scaled

__all__ = [
    "Affine",
    "AffineLayer",
    "BothSigns",
    "Concatenate",
    "Core",
    "ElementwiseCore",
    "Gain",
    "Gradients",
    "Layer",
    "LinearizedPerceptron",
    "LinearizedStages",
    "Scale",
    "Stage",
    "Translate",
    "evaluate",
    "folded",
    "inner_product",
    "is_perceptron",
    "product",
    "reusable",
    "scaled",
]
