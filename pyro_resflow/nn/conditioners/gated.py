"""The gated layers of Flow++: convolutions, self-attention, and a substitute for attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from ...arguments import checked
from ...differentiation import is_transformed
from ...rebuilding import Rebuildable
from .building_blocks import Convolution, InitializedConv2d, concat_elu
from .recipe import check_context

GATE_STD = 0.1
"""Initial standard deviation of a gate's input; each block starts near the identity."""


class GatedConv(Rebuildable, nn.Module):
    r"""A gated residual convolution, :math:`x + a\,\sigma(b)`.

    Two convolutions, each applied to a concatenated ELU, compute 2 C channels: a and b. Between
    them, a 1x1 convolution of the context's concatenated ELU is added.

    Args:
        channels: C.
        context_channels: channels of the context, 0 for none.
        kernel_size: side of the second convolution's kernel.
        dropout: probability that a hidden entry is dropped in training.
        convolution: builds each convolution.

    Reference:
        Salimans et al., PixelCNN++, 2017, section 2.4; Ho et al., Flow++, 2019, section 3.3.
    """

    def __init__(
        self,
        channels: int,
        context_channels: int = 0,
        *,
        kernel_size: int = 1,
        dropout: float = 0.0,
        convolution: Convolution = InitializedConv2d,
    ) -> None:
        super().__init__()
        self.context_channels = context_channels
        self.first = convolution(2 * channels, channels, 3)
        self.context = convolution(2 * context_channels, channels, 1) if context_channels else None
        self.dropout = nn.Dropout(dropout)
        self.second = convolution(2 * channels, 2 * channels, kernel_size, std=GATE_STD)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map images ``(N, C, H, W)``, given a context ``(N, context_channels, H, W)`` or None."""
        check_context(context, self.context_channels)
        hidden = self.first(concat_elu(x))
        if self.context is not None and context is not None:
            hidden = hidden + self.context(concat_elu(context))
        hidden = self.dropout(concat_elu(hidden))
        return x + F.glu(self.second(hidden), dim=1)


@checked()
@dataclass(frozen=True)
class GatedSelfAttention:
    r"""Recipe of gated multi-head self-attention over the pixels, :math:`x + a\,\sigma(b)`.

    Args:
        heads: number of heads, a divisor of the number of channels.

    Reference:
        Vaswani et al., Attention Is All You Need, 2017; Ho et al., Flow++, 2019, section 3.3.
    """

    heads: int = 4

    def __call__(self, channels: int, dropout: float, convolution: Convolution) -> nn.Module:
        """Build the layer.

        Raises:
            ValueError: if the heads do not divide the channels.
        """
        if channels % self.heads:
            raise ValueError(
                f"heads: expected a divisor of the {channels} channels, got {self.heads}."
            )
        return _SelfAttention(channels, self.heads, dropout, convolution)


class _SelfAttention(nn.Module):
    def __init__(
        self, channels: int, heads: int, dropout: float, convolution: Convolution
    ) -> None:
        super().__init__()
        self.heads = heads
        self.project = convolution(channels, 3 * channels, 1)
        self.dropout = nn.Dropout(dropout)
        self.gate = convolution(channels, 2 * channels, 1, std=GATE_STD)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        projected = self.project(x + positions).flatten(2)
        query, key, value = projected.unflatten(1, (3, self.heads, -1)).mT.unbind(1)
        attended = attention(query, key, value)
        hidden = self.dropout(attended.mT.reshape(x.shape))
        return x + F.glu(self.gate(hidden), dim=1)


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention; all tensors have shape ``(*, positions, features)``."""
    if is_transformed(query, key, value):  # torch.func cannot transform torch's fused attention
        weights = query @ key.mT / query.shape[-1] ** 0.5
        return weights.softmax(-1) @ value
    return F.scaled_dot_product_attention(query, key, value)


@checked()
@dataclass(frozen=True)
class GatedMaxout:
    r"""Recipe of a layer with as many parameters as self-attention that does not mix pixels.

    It gates the maximum of three linear functions of each pixel. The authors replace attention by
    it to measure the contribution of attention.

    Reference:
        Ho et al., Flow++, 2019, section 4.2.
    """

    def __call__(self, channels: int, dropout: float, convolution: Convolution) -> nn.Module:
        """Build the layer."""
        return _Maxout(channels, dropout, convolution)


class _Maxout(nn.Module):
    def __init__(self, channels: int, dropout: float, convolution: Convolution) -> None:
        super().__init__()
        self.project = convolution(channels, 3 * channels, 1)
        self.dropout = nn.Dropout(dropout)
        self.gate = convolution(channels, 2 * channels, 1, std=GATE_STD)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        pieces = self.project(x + positions).unflatten(1, (3, -1))
        return x + F.glu(self.gate(self.dropout(pieces.amax(1))), dim=1)


Mixing = Callable[[int, float, Convolution], nn.Module]
"""Builds a layer ``(x, positions) -> x`` from ``(channels, dropout, convolution)``."""
