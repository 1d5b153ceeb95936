"""Residual transforms y = x + g(x), unconditional and conditional."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, cast

from torch import Tensor, nn

from ...arguments import checked
from ...linearization import Linearizable
from ...logdet import LogDetEstimator
from ...nn import ConditionalChain, ConditionalLipschitzMLP, LipschitzMLP
from ...solvers import FixedPointSolver
from ..core.conditional import (
    ConditionalBijection,
    ConditionalInverse,
    ConditionedTransform,
    check_context,
)
from ..core.deferred import Deferred, StackKey
from ..core.inverse import Inverse
from ..core.one_pass_transform import OnePassTransform
from .calls import Network, estimated, evaluated, solved, without_nan
from .contraction_transform import ContractionTransform, HoldsContraction
from .deferring import evaluated_deferring, stack_key

Fast = Literal["sampling", "density"]


class ResidualMap(OnePassTransform):
    """The map :math:`y = x + g(x)`; a subclass returns g for each x."""

    def _at(self, name: str, x: Tensor) -> tuple[Tensor, Network, HoldsContraction]:
        """The checked x at its full batch shape, g, and the module with estimator and solver."""
        raise NotImplementedError

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x, net, holder = self._at("x", x)
        g, ladj = estimated(holder.logdet, net, x, holder._event_dim)
        return x + g, ladj

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        y, net, holder = self._at("y", y)
        x = solved(holder.solver, net, y, holder._event_dim)
        return x, estimated(holder.logdet, net, x, holder._event_dim)[1]

    def call_deferring(self, x: Tensor) -> tuple[Tensor, Deferred]:
        x, net, holder = self._at("x", x)
        g, deferred = evaluated_deferring(holder.logdet, net, x)
        return x + g, deferred

    def inverse_deferring(self, y: Tensor) -> tuple[Tensor, Deferred]:
        y, net, holder = self._at("y", y)
        x = solved(holder.solver, net, y, holder._event_dim)
        return x, evaluated_deferring(holder.logdet, net, x)[1]

    def _call(self, x: Tensor) -> Tensor:
        x, net, holder = self._at("x", x)
        return x + evaluated(net, x, holder._event_dim)

    def _inverse(self, y: Tensor) -> Tensor:
        y, net, holder = self._at("y", y)
        return solved(holder.solver, net, y, holder._event_dim)


class Residual(ContractionTransform, ResidualMap):
    r"""The residual transform :math:`y = x + g(x)` of a contraction g.

    The forward direction is one pass of the network; the inverse iterates. The log-determinant
    :math:`\log|\det(I + J_g(x))|` is unbiased with the default estimator, and so is its gradient.

    Args:
        net: g, any module from ``(N, *event)`` to ``(N, *event)`` with Lipschitz constant below 1.
            The networks of :mod:`pyro_resflow.nn` satisfy this. They are evaluated fast, and so is
            an ``nn.Sequential`` of torch's usual layers; see :func:`pyro_resflow.nn.why_autograd`.
        event_dim: number of event dimensions; default ``net.event_dim`` if there is one, else 1.
        logdet: estimator of the log-determinant, see :mod:`pyro_resflow.logdet`; default
            ``Exact()`` if ``net`` declares events of up to 8 dimensions, where it is about as fast
            and has no noise, else ``Krylov()``.
        solver: solver of the inverse, see :mod:`pyro_resflow.solvers`; default ``Anderson()``.
        cache_size: 0 or 1.

    Raises:
        ConvergenceError: by the inverse, if it does not converge, for instance because g is not a
            contraction.

    Reference:
        Chen et al., Residual Flows for Invertible Generative Modeling, 2019.

    Example:
        >>> import torch
        >>> import pyro.distributions as dist
        >>> from pyro_resflow.nn import LipschitzMLP
        >>> from pyro_resflow.transforms import Residual
        >>> base = dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)
        >>> flow = dist.TransformedDistribution(base, [Residual(LipschitzMLP(2))])
        >>> flow.log_prob(flow.sample((5,))).shape
        torch.Size([5])
    """

    def _at(self, name: str, x: Tensor) -> tuple[Tensor, Network, HoldsContraction]:
        self._check(name, x, autocast=name == "x")  # the solver of y ignores autocast
        return x, self.net, self

    def stack_key(self) -> StackKey | None:
        if type(self) is not Residual:  # a subclass may compute something else
            return None
        return stack_key(self, self.net)


class ConditionalNetwork(Protocol):
    """A network of an input and a context."""

    context_dim: int

    def bind(self, context: Tensor) -> Network:
        """The network of the input at one context per sample, ``(N, context_dim)``.

        Gradients reach only the ``coefficients`` of the network, so that all tensors computed from
        the context must be among them. The coefficients of a plain module are its parameters.
        """


class ConditionalResidual(HoldsContraction, ConditionalBijection):
    r"""The residual transform :math:`y = x + g(x; c)`, a contraction in x for every context c.

    ``condition(c)`` returns the transform at a context of shape ``(*batch, context_dim)``; its
    batch dimensions broadcast with those of x.

    Args:
        net: a module with ``bind(context)`` and ``context_dim``, for instance
            :class:`pyro_resflow.nn.ConditionalLipschitzMLP`.
        event_dim: see :class:`Residual`.
        logdet: see :class:`Residual`.
        solver: see :class:`Residual`.

    Example:
        >>> import torch
        >>> from pyro_resflow import conditional_residual
        >>> t = conditional_residual(2, context_dim=3)
        >>> t.condition(torch.randn(7, 3))(torch.randn(7, 2)).shape
        torch.Size([7, 2])
    """

    def __init__(
        self,
        net: ConditionalNetwork,
        *,
        event_dim: int | None = None,
        logdet: LogDetEstimator | None = None,
        solver: FixedPointSolver | None = None,
    ) -> None:
        super().__init__()
        self._set_contraction(net, event_dim, logdet, solver)

    @property
    def _network(self) -> ConditionalNetwork:
        return cast(ConditionalNetwork, self.net)

    def condition(self, context: Tensor) -> ConditionedResidual:
        """The transform at a context.

        Args:
            context: shape ``(*batch, context_dim)``.

        Raises:
            ValueError: for a context of another width.
        """
        check_context(context, (self._network.context_dim,), self)
        return ConditionedResidual(self, context)


class ConditionedResidual(ResidualMap, ConditionedTransform):
    """A conditional residual transform at one context, the result of ``condition``.

    Args:
        conditional: the transform that was conditioned.
        context: shape ``(*batch, context_dim)``.
        cache_size: 0 or 1.
    """

    def _at(self, name: str, x: Tensor) -> tuple[Tensor, Network, HoldsContraction]:
        """x at the common batch shape, and the network bound to the context at it, flattened."""
        holder: ConditionalResidual = self.conditional
        holder._check(name, x, autocast=name == "x")
        shape = self.forward_shape(x.shape)
        batch_shape = shape[: len(shape) - holder._event_dim]
        x, context = x.expand(shape), self._flat_context(batch_shape)
        if name == "y":
            x, context = without_nan(x, context, holder._event_dim)
        net = bound_at(holder._network, context)
        if self.context.requires_grad and not isinstance(net, Linearizable):
            raise ValueError(
                "net: expected bind to return a network that passes gradients to the context, got "
                f"a {type(net).__name__}; return a pyro_resflow.nn.Chain or another network whose "
                "coefficients() include all tensors computed from the context, or detach the "
                "context."
            )
        return x, net, holder

    def stack_key(self) -> StackKey | None:
        net = self.conditional.net
        if type(self.conditional) is not ConditionalResidual:
            return None
        if not isinstance(net, ConditionalChain) or not net.binds_its_chain:
            return None
        return stack_key(self.conditional, net.chain)


def bound_at(net: ConditionalNetwork, context: Tensor) -> Network:
    """A network at a context, for one pass."""
    return net.bound_at(context) if isinstance(net, ConditionalChain) else net.bind(context)


@checked(LipschitzMLP, chosen_by="network")
def residual(
    input_dim: int,
    hidden_dims: Sequence[int] | None = None,
    *,
    fast: Fast = "sampling",
    logdet: LogDetEstimator | None = None,
    solver: FixedPointSolver | None = None,
    network: type[nn.Module] = LipschitzMLP,
    **options: Any,
) -> Residual | Inverse:
    """A residual transform of vectors.

    Args:
        input_dim: size of the vectors.
        hidden_dims: widths of the hidden layers; default ``[64, 64]``.
        fast: the direction without iteration: ``"sampling"`` (forward) for guides and variational
            posteriors, ``"density"`` (inverse) for fitting data.
        logdet: see :class:`Residual`.
        solver: see :class:`Residual`.
        network: the class of the contraction: :class:`pyro_resflow.nn.LipschitzMLP` or
            :class:`pyro_resflow.nn.GatedLipschitzMLP`.
        options: further arguments of that class.

    Raises:
        ValueError: for an unknown ``fast``.

    Example:
        >>> import torch
        >>> from pyro_resflow import residual
        >>> residual(3)(torch.randn(3)).shape
        torch.Size([3])
    """
    net = network(input_dim, hidden_dims if hidden_dims is not None else (64, 64), **options)
    block = Residual(net, logdet=logdet, solver=solver)
    return block if checked_fast(fast) == "sampling" else Inverse(block)


@checked(ConditionalLipschitzMLP, chosen_by="network")
def conditional_residual(
    input_dim: int,
    context_dim: int,
    hidden_dims: Sequence[int] | None = None,
    *,
    fast: Fast = "sampling",
    logdet: LogDetEstimator | None = None,
    solver: FixedPointSolver | None = None,
    network: type[nn.Module] = ConditionalLipschitzMLP,
    **options: Any,
) -> ConditionalResidual | ConditionalInverse:
    """A residual transform of vectors given a context.

    Args:
        input_dim: size of the vectors.
        context_dim: size of the context.
        hidden_dims: widths of the hidden layers; default ``[64, 64]``.
        fast: see :func:`residual`.
        logdet: see :class:`Residual`.
        solver: see :class:`Residual`.
        network: the class of the contraction: :class:`pyro_resflow.nn.ConditionalLipschitzMLP` or
            :class:`pyro_resflow.nn.ConditionalGatedLipschitzMLP`.
        options: further arguments of that class.

    Raises:
        ValueError: for an unknown ``fast``.
    """
    widths = hidden_dims if hidden_dims is not None else (64, 64)
    net: Any = network(input_dim, context_dim, widths, **options)
    block = ConditionalResidual(net, logdet=logdet, solver=solver)
    return block if checked_fast(fast) == "sampling" else ConditionalInverse(block)


def checked_fast(fast: str) -> str:
    """``fast``, checked.

    Raises:
        ValueError: unless it is "sampling" or "density".
    """
    if fast not in ("sampling", "density"):
        raise ValueError(f"fast: expected 'sampling' or 'density', got {fast!r}.")
    return fast
