"""Networks that make a coupling's parameters of the half that it keeps (torch only)."""

from .attention import GatedAttentionConditioner, GatedEncoder
from .convolutional import ConvConditioner
from .gated import GatedConv, GatedMaxout, GatedSelfAttention
from .layers import InitializedConv2d, WeightNormConv2d
from .recipe import Conditioner
from .residual import ResidualConditioner

__all__ = [
    "Conditioner",
    "ConvConditioner",
    "GatedAttentionConditioner",
    "GatedConv",
    "GatedEncoder",
    "GatedMaxout",
    "GatedSelfAttention",
    "InitializedConv2d",
    "ResidualConditioner",
    "WeightNormConv2d",
]
