"""The stages of a network, and their linearization at a point."""

from .affine import Affine, AffineLayer, AffineSaved, Products
from .concatenate import Concatenate
from .core import BothSigns, Core, ElementwiseCore
from .elementwise import Elementwise, HyperbolicTangent, Swish
from .folding import folded
from .gate import Gate, GateTangents, LinearizedGate
from .network import StagedNetwork
from .perceptron import (
    LinearizedPerceptron,
    activations_of,
    is_perceptron,
    value_and_jacobian_inputs,
)
from .scale import Scale, Translate
from .sequence import LinearizedStages, evaluate
from .stage import Gain, Gradients, Layer, Stage, inner_product, product, reusable, scaled
from .tangents import PerceptronTangents, Tangents, TransposedJacobian

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
    "GateTangents",
    "Gradients",
    "HyperbolicTangent",
    "Layer",
    "LinearizedGate",
    "LinearizedPerceptron",
    "LinearizedStages",
    "PerceptronTangents",
    "Products",
    "Scale",
    "Stage",
    "StagedNetwork",
    "Swish",
    "Tangents",
    "Translate",
    "TransposedJacobian",
    "activations_of",
    "evaluate",
    "folded",
    "inner_product",
    "is_perceptron",
    "product",
    "reusable",
    "scaled",
    "value_and_jacobian_inputs",
]
