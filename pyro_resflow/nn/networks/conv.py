"""Convolutional networks with a known Lipschitz constant."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from ..activations import Activation, LipSwish
from ..lipschitz.linear import LipschitzConv2d
from .chain import Chain
from .norms import Norms, norm_per_layer


class LipschitzConvNet(Chain):
    r"""Convolutional network on images with Lipschitz constant at most :math:`c^L`.

    The default kernel sizes 3, 1, 3 are those of the blocks in the paper on residual flows.

    Args:
        event_shape: channels, height and width of the images.
        hidden_channels: channels of the hidden layers.
        kernel_sizes: one odd size per convolution, one more than hidden layers.
        activation: makes one activation per hidden layer, and one more in front if
            ``preactivation``.
        norm: the norm that bounds each convolution, or one norm per convolution; default
            ``SpectralNorm(0.98)``.
        preactivation: start with an activation.

    Shapes: ``(N, C, H, W)`` to ``(N, C, H, W)``.

    Raises:
        ValueError: if the number of kernel sizes is not one more than that of hidden layers.

    Reference:
        Chen et al., Residual Flows for Invertible Generative Modeling, 2019, appendix E.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        hidden_channels: Sequence[int] = (64, 64),
        *,
        kernel_sizes: Sequence[int] = (3, 1, 3),
        activation: Callable[[], Activation] = LipSwish,
        norm: Norms = None,
        preactivation: bool = True,
    ) -> None:
        channels, height, width = checked_image_shape(event_shape)
        if len(kernel_sizes) != len(hidden_channels) + 1:
            raise ValueError(
                f"kernel_sizes: expected {len(hidden_channels) + 1} sizes for "
                f"{len(hidden_channels)} hidden layers, got {len(kernel_sizes)}."
            )
        widths = [channels, *hidden_channels, channels]
        norms = norm_per_layer(norm, len(kernel_sizes), concatenates=activation().expansion > 1)
        layers: list[nn.Module] = []
        expansion = 1
        for i, (kernel_size, layer_norm) in enumerate(zip(kernel_sizes, norms, strict=True)):
            if i > 0 or preactivation:
                phi = activation()
                if getattr(phi, "feature_dim", -3) != -3:
                    raise ValueError(
                        f"activation: expected one that concatenates channels, dimension -3, got "
                        f"a {type(phi).__name__} of dimension {phi.feature_dim}; pass "
                        f"partial({type(phi).__name__}, -3)."
                    )
                layers.append(phi)
                expansion = phi.expansion
            layers.append(
                LipschitzConv2d(
                    widths[i] * expansion, widths[i + 1], kernel_size, (height, width), layer_norm
                )
            )
        super().__init__(layers, event_dim=3)
        self.event_shape = torch.Size(event_shape)


def checked_image_shape(event_shape: Sequence[int]) -> tuple[int, int, int]:
    """``event_shape`` as (channels, height, width).

    Raises:
        ValueError: unless it is three positive integers.
    """
    if len(event_shape) != 3 or any(size < 1 for size in event_shape):
        raise ValueError(
            f"event_shape: expected (channels, height, width), got {tuple(event_shape)}."
        )
    channels, height, width = event_shape
    return channels, height, width
