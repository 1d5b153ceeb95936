"""Networks with a known Lipschitz constant, and conditioners of couplings (torch only)."""

from .activations import (
    ELU,
    Activation,
    CLipSwish,
    Concatenated,
    CPila,
    FixedLipSwish,
    LipSwish,
    Pila,
    SharpLipSwish,
    Softplus,
    Tanh,
)
from .conditional import (
    ConditionalChain,
    ConditionalGatedLipschitzMLP,
    ConditionalLipschitzMLP,
)
from .conditioners import (
    Conditioner,
    ConvConditioner,
    ConvNet,
    GatedAttentionConditioner,
    GatedConv,
    GatedEncoder,
    GatedMaxout,
    GatedNet,
    GatedSelfAttention,
    GatedStack,
    InitializedConv2d,
    ResidualConditioner,
    ResidualNet,
    TransformerConditioner,
    TransformerNet,
    WeightNormConv2d,
)
from .contraction_check import check_contraction
from .initialization import DataInitialized, initialize_by, scores_data
from .lipschitz.induced_norm import InducedNorm
from .lipschitz.infinity_norm import InfinityNormLinear
from .lipschitz.layer import LipschitzLayer
from .lipschitz.linear import LipschitzConv2d, LipschitzLinear
from .lipschitz.operator_norm import OperatorNorm
from .lipschitz.spectral_norm import SpectralNorm
from .lipschitz.state import NonFiniteWeightError
from .lipschitz.update import update_norms
from .networks import (
    Chain,
    DenseConcatenation,
    GatedLipschitzMLP,
    LipschitzConvNet,
    LipschitzDenseNet,
    LipschitzMLP,
    Shift,
)
from .padding import InjectivePadding
from .sequential import why_autograd

__all__ = [
    "ELU",
    "Activation",
    "CLipSwish",
    "CPila",
    "Chain",
    "Concatenated",
    "ConditionalChain",
    "ConditionalGatedLipschitzMLP",
    "ConditionalLipschitzMLP",
    "Conditioner",
    "ConvConditioner",
    "ConvNet",
    "DataInitialized",
    "DenseConcatenation",
    "FixedLipSwish",
    "GatedAttentionConditioner",
    "GatedConv",
    "GatedEncoder",
    "GatedLipschitzMLP",
    "GatedMaxout",
    "GatedNet",
    "GatedSelfAttention",
    "GatedStack",
    "InducedNorm",
    "InfinityNormLinear",
    "InitializedConv2d",
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
    "ResidualConditioner",
    "ResidualNet",
    "SharpLipSwish",
    "Shift",
    "Softplus",
    "SpectralNorm",
    "Tanh",
    "TransformerConditioner",
    "TransformerNet",
    "WeightNormConv2d",
    "check_contraction",
    "initialize_by",
    "scores_data",
    "update_norms",
    "why_autograd",
]
