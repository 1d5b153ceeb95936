"""The stages in which a network is evaluated, and their linearization at a point."""

from .base import (
    Affine,
    BothSigns,
    Core,
    Gain,
    Gradients,
    Layer,
    Saved,
    Scale,
    Stage,
    Translate,
    folded,
    inner_product,
    product,
    scaled,
)
from .linearized import Beside, LinearizedStages, evaluate

__all__ = [
    "Affine",
    "Beside",
    "BothSigns",
    "Core",
    "Gain",
    "Gradients",
    "Layer",
    "LinearizedStages",
    "Saved",
    "Scale",
    "Stage",
    "Translate",
    "evaluate",
    "folded",
    "inner_product",
    "product",
    "scaled",
]
