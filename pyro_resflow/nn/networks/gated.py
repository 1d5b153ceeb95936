"""Contractions that multiply: multilayer perceptrons with a gate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ...linearization import Linearizable, Linearization
from ...rebuilding import Rebuildable
from ..activations import Activation, LipSwish
from ..lipschitz.infinity_norm import InfinityNormLinear
from ..stages import Gate, LinearizedGate
from .chain import BoundChain, Chain, refuse_hooks

REACH_START = 3.0
"""Initial r: standard normal noise mostly lies within, where the gate is nearly a product."""

GATED_START = 2.0
"""Initial logit of the gate's part of the coefficient: 88 %, so that the network multiplies."""

SHARP_BETA = 3.0
"""Initial beta of the activation: a small network needs a bend within the range of the noise."""


class GatedLipschitzMLP(Rebuildable, nn.Module):
    r"""A contraction that can scale some entries by others.

    .. math:: g(x) = a\,r \tanh(x / r) \odot \tanh(n(x) / r) + b\,m(x), \qquad a + b = c,

    where one multilayer perceptron returns n(x) and m(x). Its linear layers have infinity norms of
    at most 1, and so :math:`|g(x) - g(y)|_\infty \le c\,|x - y|_\infty`: a product of two
    hyperbolic tangents is a contraction, see :mod:`pyro_resflow.nn.stages.gate`. The vectors a and
    b divide the coefficient c between the product and the shift m, for each entry. They are
    learned, and so is the reach r.

    A posterior of a hierarchical model scales the effects of groups by their spread. A block
    :math:`x + g(x)` with this network scales each entry by a factor between 1 - c and 1 + c that
    depends on the others. :class:`LipschitzMLP` has to add up such a product from many hidden
    units. And because each row of a weight is bounded by itself, one entry may scale any number of
    others; a spectral norm would have to divide its effect by the root of their number.

    Args:
        input_dim: D.
        hidden_dims: widths of the hidden layers.
        activation: makes one activation per hidden layer; default :class:`LipSwish`, which starts
            with a sharper bend, :math:`\beta = 3`.
        coefficient: c, the Lipschitz constant of g, in (0, 1).

    Shapes: ``(N, D)`` to ``(N, D)``.

    Raises:
        ValueError: for a coefficient outside (0, 1).

    Example:
        >>> import torch
        >>> from pyro_resflow.nn import GatedLipschitzMLP
        >>> net = GatedLipschitzMLP(3, [32], coefficient=0.9)
        >>> x, y = torch.randn(2, 7, 3)
        >>> bool((net(x) - net(y)).abs().max() <= 0.9 * (x - y).abs().max())
        True
    """

    event_dim = 1

    def __init__(
        self,
        input_dim: int,
        hidden_dims: Sequence[int] = (64,),
        *,
        activation: Callable[[], Activation] | None = None,
        coefficient: float = 0.98,
    ) -> None:
        super().__init__()
        if not 0 < coefficient < 1:
            raise ValueError(
                f"coefficient: expected 0 < coefficient < 1, got {coefficient}; a residual block "
                "is invertible if its Lipschitz constant is below 1."
            )
        make = activation if activation is not None else partial(LipSwish, beta=SHARP_BETA)
        layers: list[nn.Module] = []
        features = input_dim
        for width in hidden_dims:
            phi = make()
            layers += [InfinityNormLinear(features, width), phi]
            features = width * phi.expansion
        layers.append(InfinityNormLinear(features, 2 * input_dim))
        self.input_dim = input_dim
        self.coefficient = coefficient
        self.branch = Chain(layers)
        self.gated = nn.Parameter(torch.full((input_dim,), GATED_START))
        self.log_reach = nn.Parameter(torch.tensor(math.log(REACH_START)))

    def bound(self) -> BoundGate:
        """The network with the stages of its branch built, for one solve or one estimate.

        Raises:
            ValueError: for hooks on the network or a layer, which would not be called.
        """
        refuse_hooks("net", {"": self, "branch": self.branch})
        return BoundGate(self, self.branch._bound())

    def coefficients(self) -> tuple[Tensor, ...]:
        """The branch's coefficients, the vectors a and b, and the reach."""
        return self.bound().coefficients()

    def forward(self, x: Tensor) -> Tensor:
        return self.bound()(x)

    def evaluate(self, x: Tensor, coefficients: Sequence[Tensor]) -> Tensor:
        """The network at x of shape ``(N, D)`` with given coefficients."""
        return self.bound().evaluate(x, coefficients)

    def linearize(self, x: Tensor, coefficients: Sequence[Tensor] | None = None) -> Linearization:
        """The network at x of shape ``(N, D)``, with products with its Jacobian."""
        return self.bound().linearize(x, coefficients)

    def gate_coefficients(self) -> tuple[Tensor, Tensor, Tensor]:
        """The vectors a and b, and the reach."""
        gated = torch.sigmoid(self.gated).clamp_min(torch.finfo(self.gated.dtype).tiny)
        amplitude = self.coefficient * gated
        return amplitude, self.coefficient - amplitude, self.log_reach.exp()

    @torch.no_grad()
    def lipschitz_bound(self) -> Tensor:
        """A certified upper bound of the Lipschitz constant in the infinity norm, a scalar."""
        return self.coefficient * self.branch.lipschitz_bound().clamp_min(1)


@dataclass(frozen=True, eq=False)
class BoundGate:
    """A gated network whose branch has its stages built, see :meth:`GatedLipschitzMLP.bound`.

    Args:
        net: the network.
        branch: its branch.
    """

    net: GatedLipschitzMLP
    branch: BoundChain

    def __call__(self, x: Tensor) -> Tensor:
        return self.evaluate(x, self.coefficients())

    def coefficients(self) -> tuple[Tensor, ...]:
        """See :meth:`GatedLipschitzMLP.coefficients`."""
        return *self.branch.coefficients(), *self.net.gate_coefficients()

    def evaluate(self, x: Tensor, coefficients: Sequence[Tensor]) -> Tensor:
        """See :meth:`GatedLipschitzMLP.evaluate`."""
        *inner, amplitude, share, reach = coefficients
        n, m = self.branch.evaluate(x, inner).to(x.dtype).chunk(2, dim=-1)
        return torch.addcmul(Gate(x, n, amplitude, reach).value, share, m)

    def linearize(self, x: Tensor, coefficients: Sequence[Tensor] | None = None) -> Linearization:
        """See :meth:`GatedLipschitzMLP.linearize`."""
        *inner, amplitude, share, reach = (
            self.coefficients() if coefficients is None else coefficients
        )
        return LinearizedGate(x, self.branch.linearize(x, inner), amplitude, share, reach)


_: type[Linearizable] = BoundGate
