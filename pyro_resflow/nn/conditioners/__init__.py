"""Networks that compute a coupling's parameters from the half that it keeps (torch only)."""

from .attention import GatedAttentionConditioner, GatedEncoder, GatedNet, GatedStack
from .building_blocks import InitializedConv2d, WeightNormConv2d
from .convolutional import ConvConditioner, ConvNet
from .gated import GatedConv, GatedMaxout, GatedSelfAttention
from .recipe import Conditioner
from .residual import ResidualConditioner, ResidualNet
from .transformer import TransformerConditioner, TransformerNet

__all__ = [
    "Conditioner",
    "ConvConditioner",
    "ConvNet",
    "GatedAttentionConditioner",
    "GatedConv",
    "GatedEncoder",
    "GatedMaxout",
    "GatedNet",
    "GatedSelfAttention",
    "GatedStack",
    "InitializedConv2d",
    "ResidualConditioner",
    "ResidualNet",
    "TransformerConditioner",
    "TransformerNet",
    "WeightNormConv2d",
]
