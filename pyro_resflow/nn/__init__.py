"""Networks with a known Lipschitz constant (torch only)."""

from .activations import (
    ELU,
    Activation,
    CLipSwish,
    Concatenated,
    CPila,
    LipSwish,
    Pila,
    Softplus,
    Tanh,
)
from .conditional import ConditionalLipschitzMLP
from .contraction import check_contraction
from .lipschitz import (
    LipschitzConv2d,
    LipschitzLayer,
    LipschitzLinear,
    NonFiniteWeightError,
    update_norms,
)
from .networks import (
    Chain,
    DenseConcatenation,
    LipschitzConvNet,
    LipschitzDenseNet,
    LipschitzMLP,
    Shift,
)
from .norms import InducedNorm, OperatorNorm, SpectralNorm
from .padding import InjectivePadding

__all__ = [
    "ELU",
    "Activation",
    "CLipSwish",
    "CPila",
    "Chain",
    "Concatenated",
    "ConditionalLipschitzMLP",
    "DenseConcatenation",
    "InducedNorm",
    "InjectivePadding",
    "LipSwish",
    "LipschitzConv2d",
    "LipschitzConvNet",
    "LipschitzDenseNet",
    "LipschitzLayer",
    "LipschitzLinear",
    "LipschitzMLP",
    "NonFiniteWeightError",
    "OperatorNorm",
    "Pila",
    "Shift",
    "Softplus",
    "SpectralNorm",
    "Tanh",
    "check_contraction",
    "update_norms",
]
