r"""Networks with a known Lipschitz constant: chains of layers that can be linearized.

Every layer breaks into stages that know their derivatives, and :class:`Chain` composes them. A
network of L linear layers, each of norm at most c, and activations of slope at most 1 has a
Lipschitz constant of at most :math:`c^L`.
"""

from .chain import BoundChain, Chain, Shift
from .conv import LipschitzConvNet
from .dense import DenseConcatenation, LipschitzDenseNet
from .gated import GatedLipschitzMLP
from .mlp import LipschitzMLP
from .norms import Norms

__all__ = [
    "BoundChain",
    "Chain",
    "DenseConcatenation",
    "GatedLipschitzMLP",
    "LipschitzConvNet",
    "LipschitzDenseNet",
    "LipschitzMLP",
    "Norms",
    "Shift",
]
