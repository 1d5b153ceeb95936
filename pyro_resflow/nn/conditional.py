"""Networks that are contractions in their input, and depend on a context without constraints."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ..rebuilding import Rebuildable
from .activations import Activation, LipSwish
from .lipschitz.linear import LipschitzLinear
from .networks import Chain, LipschitzMLP, Norms, Shift


class ConditionalLipschitzMLP(Rebuildable, nn.Module):
    r"""A Lipschitz network in which a network of the context shifts every layer.

    :math:`h_{i+1} = \phi(W_i h_i + b_i + s_i(c))`, where an unconstrained network computes the
    shifts :math:`s(c)`. Shifts do not change the bound of the Jacobian with respect to the input.

    Args:
        input_dim: D.
        context_dim: size of the context.
        hidden_dims: widths of the hidden layers of g.
        context_hidden_dims: widths of the hidden layers of the network that computes the shifts.
        activation: makes one activation per hidden layer of g.
        norm: see :class:`LipschitzMLP`.

    Example:
        >>> import torch
        >>> from pyro_resflow.nn import ConditionalLipschitzMLP
        >>> net = ConditionalLipschitzMLP(2, 5).bind(torch.randn(7, 5))
        >>> net(torch.randn(7, 2)).shape
        torch.Size([7, 2])
    """

    event_dim = 1

    def __init__(
        self,
        input_dim: int,
        context_dim: int,
        hidden_dims: Sequence[int] = (64, 64),
        *,
        context_hidden_dims: Sequence[int] = (64,),
        activation: Callable[[], Activation] = LipSwish,
        norm: Norms = None,
    ) -> None:
        super().__init__()
        self.input_dim = input_dim
        self.context_dim = context_dim
        self.chain = LipschitzMLP(input_dim, hidden_dims, activation=activation, norm=norm)
        self.shift_sizes = [*hidden_dims, input_dim]
        widths = [context_dim, *context_hidden_dims, sum(self.shift_sizes)]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.SiLU()]
        self.shifts = nn.Sequential(*layers[:-1])

    def bind(self, context: Tensor) -> Chain:
        """The network at one context per sample: ``context`` has shape ``(N, context_dim)``."""
        shifts = iter(self.shifts(context).split(self.shift_sizes, dim=-1))
        layers: list[nn.Module] = []
        for layer in self.chain:
            layers.append(layer)
            if isinstance(layer, LipschitzLinear):
                layers.append(Shift(next(shifts)))
        return Chain(layers, event_dim=1)
