"""Contractions that multiply: multilayer perceptrons with a gate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...linearization import Linearizable, Linearization
from ...rebuilding import Rebuildable
from ..activations import Activation, FixedLipSwish
from ..lipschitz.infinity_norm import InfinityNormLinear
from ..stages import Gate, GateTangents, LinearizedGate
from .chain import BoundChain, Chain, refuse_hooks
from .overriding import evaluated_by_itself, evaluates_as
from .stacked import Layout

REACH = 3.0
"""The default of r: standard normal noise mostly lies within, where the gate acts as a product."""

GATED_START = 2.0
"""Initial logit of the gate's part of the coefficient: 88 %, so that the network multiplies."""


class GatedLipschitzMLP(Rebuildable, nn.Module):
    r"""A contraction that can scale some entries by others.

    .. math:: g(x) = a\,r \tanh(x / r) \odot \tanh(n(x) / r) + b\,m(x), \qquad a + b = c,

    where one multilayer perceptron returns n(x) and m(x). Its linear layers have infinity norms of
    at most 1, and so :math:`|g(x) - g(y)|_\infty \le c\,|x - y|_\infty`: a product of two
    hyperbolic tangents is a contraction, see :mod:`pyro_resflow.nn.stages.gate`. The learned
    vectors a and b divide the coefficient c between the product and the shift m, for each entry.

    A posterior of a hierarchical model scales the effects of groups by their spread. A block
    :math:`x + g(x)` with this network scales each entry by a factor between 1 - c and 1 + c that
    depends on the others. :class:`LipschitzMLP` has to add up such a product from many hidden
    units. And because each row of a weight is bounded by itself, one entry may scale any number of
    others; a spectral norm would have to divide its effect by the root of their number.

    Args:
        input_dim: D.
        hidden_dims: widths of the hidden layers.
        activation: makes one activation per hidden layer.
        coefficient: c, the Lipschitz constant of g, in (0, 1).
        reach: r, a positive number, the distance from the origin within which the gate is nearly
            the product of its factors.

    Shapes: ``(N, D)`` to ``(N, D)``.

    Raises:
        ValueError: for a coefficient outside (0, 1) or a reach that is not positive.

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
        activation: Callable[[], Activation] = FixedLipSwish,
        coefficient: float = 0.98,
        reach: float = REACH,
    ) -> None:
        super().__init__()
        if not 0 < coefficient < 1:
            raise ValueError(
                f"coefficient: expected 0 < coefficient < 1, got {coefficient}; a residual block "
                "is invertible if its Lipschitz constant is below 1."
            )
        if not reach > 0:
            raise ValueError(f"reach: expected a positive number, got {reach}.")
        layers: list[nn.Module] = []
        features = input_dim
        for width in hidden_dims:
            phi = activation()
            layers += [InfinityNormLinear(features, width), phi]
            features = width * phi.expansion
        layers.append(InfinityNormLinear(features, 2 * input_dim))
        self.input_dim = input_dim
        self.coefficient = coefficient
        self.reach = reach
        self.branch = Chain(layers)
        self.gated = nn.Parameter(torch.full((input_dim,), GATED_START))

    def with_branch(self, branch: Chain) -> GatedLipschitzMLP:
        """The network with another branch, which shares the vectors a and b of this one.

        Args:
            branch: a network from D to 2 D features.
        """
        other = copy(self)
        other._modules = {**self._modules, "branch": branch}
        return other

    _is_evaluated_by_stages = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._is_evaluated_by_stages = evaluates_as(cls, GatedLipschitzMLP)

    def bound(self) -> Linearizable:
        """The network with the stages of its branch built, for one solve or one estimate.

        A subclass that overrides how it is evaluated is returned unchanged; one that overrides
        ``forward`` alone is linearized by autograd.

        Raises:
            ValueError: for hooks on the network or a layer, which would not be called.
        """
        return self._bound() if self._is_evaluated_by_stages else evaluated_by_itself(self)

    def _bound(self) -> BoundGate:
        refuse_hooks("net", {"": self})
        refuse_hooks("branch", {"": self.branch})
        return BoundGate(self, cast(BoundChain, self.branch.bound()))

    def coefficients(self) -> tuple[Tensor, ...]:
        """The branch's coefficients, and the vectors a and b."""
        return self._bound().coefficients()

    def forward(self, x: Tensor) -> Tensor:
        return self._bound()(x)

    def evaluate(self, x: Tensor, coefficients: Sequence[Tensor]) -> Tensor:
        """The network at x of shape ``(N, D)`` with given coefficients."""
        return self._bound().evaluate(x, coefficients)

    def linearize(self, x: Tensor, coefficients: Sequence[Tensor] | None = None) -> Linearization:
        """The network at x of shape ``(N, D)``, with products with its Jacobian."""
        return self._bound().linearize(x, coefficients)

    def dual(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """g(x) and J_g(x) v, differentiable: x of ``(N, D)``, v of ``(S, N, D)``."""
        linearization = self.linearize(x)
        return linearization.value, linearization.jvp(v)

    def gate_coefficients(self) -> tuple[Tensor, Tensor]:
        """The vectors a and b."""
        # positive, because the gradient with respect to an amplitude divides by it
        gated = torch.sigmoid(self.gated).clamp_min(torch.finfo(self.gated.dtype).tiny)
        amplitude = self.coefficient * gated
        return amplitude, self.coefficient - amplitude

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

    def bound(self) -> BoundGate:
        """The network itself."""
        return self

    def affine_layers(self) -> list[object]:
        """The layers of the branch's affine maps."""
        return self.branch.affine_layers()

    def shifted(self, shifts: Iterable[Tensor]) -> BoundGate:
        """The network with a shifted branch, see :meth:`.chain.BoundChain.shifted`."""
        return BoundGate(self.net, self.branch.shifted(shifts))

    def coefficients(self) -> tuple[Tensor, ...]:
        """See :meth:`GatedLipschitzMLP.coefficients`."""
        return *self.branch.coefficients(), *self.net.gate_coefficients()

    def evaluate(self, x: Tensor, coefficients: Sequence[Tensor]) -> Tensor:
        """See :meth:`GatedLipschitzMLP.evaluate`."""
        *inner, amplitude, share = coefficients
        n, m = self.branch.evaluate(x, inner).to(x.dtype).chunk(2, dim=-1)
        return torch.addcmul(Gate(x, n, amplitude, self.net.reach).value, share, m)

    def linearize(self, x: Tensor, coefficients: Sequence[Tensor] | None = None) -> Linearization:
        """See :meth:`GatedLipschitzMLP.linearize`."""
        *inner, amplitude, share = self.coefficients() if coefficients is None else coefficients
        branch = self.branch.linearize(x, inner)
        return LinearizedGate(x, branch, amplitude, share, self.net.reach)

    # see `stacked.Stackable`

    def layout(self) -> Layout | None:
        """The reach, and the layout of the branch."""
        if not isinstance(self.branch, BoundChain):  # a subclass that evaluates itself
            return None
        branch = self.branch.layout()
        return None if branch is None else (BoundGate, self.net.reach, branch)

    def input_features(self) -> int:
        """The number of inputs."""
        return self.net.input_dim

    def hidden_features(self) -> int:
        """Those of the branch, and its outputs n and m."""
        return self.branch.hidden_features() + 2 * self.net.input_dim

    def value_and_jacobian_inputs(
        self, x: Tensor, coefficients: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """The value; the tensors of the branch's Jacobian, the vectors a and b, x and n."""
        *inner, amplitude, share = coefficients
        both, inputs = self.branch.value_and_jacobian_inputs(x, inner)
        n, m = both.to(x.dtype).chunk(2, dim=-1)
        value = torch.addcmul(Gate(x, n, amplitude, self.net.reach).value, share, m)
        return value, [*inputs, amplitude, share, x, n]

    def jacobian_coefficients(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The tensors of the branch's Jacobian, the gate's derivatives, and b."""
        *inner, amplitude, share, x, n = inputs
        gate = Gate(x, n, amplitude, self.net.reach)
        return *self.branch.jacobian_coefficients(inner), *gate.derivatives(), share

    def tangents(self, coefficients: Sequence[Tensor]) -> GateTangents:
        """Products with the Jacobians."""
        *inner, by_x, by_n, share = coefficients
        return GateTangents(self.branch.tangents(inner), by_x, by_n, share)
