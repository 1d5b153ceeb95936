"""Multilayer perceptrons with a known Lipschitz constant."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from ..activations import Activation, LipSwish
from ..lipschitz.linear import LipschitzLinear
from .chain import Chain
from .norms import Norms, norm_per_layer


class LipschitzMLP(Chain):
    r"""Multilayer perceptron :math:`g: R^D \to R^D` with Lipschitz constant at most :math:`c^L`.

    Args:
        input_dim: D.
        hidden_dims: widths of the hidden layers; L is one more than their number.
        activation: makes one activation per hidden layer.
        norm: the norm that bounds each linear layer, or one norm per layer; default
            ``SpectralNorm(0.98)``.
        preactivation: start with an activation, as the convolutional blocks of the paper do.

    Shapes: ``(N, D)`` to ``(N, D)``.

    Example:
        >>> import torch
        >>> from pyro_resflow.nn import LipschitzMLP
        >>> net = LipschitzMLP(2, [32, 32])
        >>> net(torch.randn(7, 2)).shape
        torch.Size([7, 2])
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dims: Sequence[int] = (64, 64),
        *,
        activation: Callable[[], Activation] = LipSwish,
        norm: Norms = None,
        preactivation: bool = False,
    ) -> None:
        widths = [input_dim, *hidden_dims, input_dim]
        norms = norm_per_layer(norm, len(widths) - 1, concatenates=activation().expansion > 1)
        layers: list[nn.Module] = []
        expansion = 1
        for i, layer_norm in enumerate(norms):
            if i > 0 or preactivation:
                phi = activation()
                layers.append(phi)
                expansion = phi.expansion
            layers.append(LipschitzLinear(widths[i] * expansion, widths[i + 1], layer_norm))
        super().__init__(layers, event_dim=1)
        self.input_dim = input_dim
