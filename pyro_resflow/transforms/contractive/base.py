"""What the transforms made of a contraction share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ...callers import is_validating
from ...differentiation import torch_func_is_active
from ...linearization import (
    AutogradNetwork,
    Linearizable,
    Linearization,
    Negative,
    as_linearizable,
    resolve_event_dim,
)
from ...logdet import Exact, Krylov, SpectralFunction
from ...nn import Chain
from ...solvers import Anderson
from ...tracing import called_back, tracing_state
from ..core.base import OnePassTransform, check_dtype, check_event_shape
from ..core.determinism import EstimatesLogDet, unsettled

EXACT_UP_TO = 8
"""Dimensions up to which the whole Jacobian costs about as much as an estimate."""

Network = nn.Module | Linearizable
LogDet = Callable[[Network, Tensor, int], tuple[Tensor, Tensor]]
Solve = Callable[[Network, Tensor, int], Tensor]


class ContractionTransform(EstimatesLogDet, OnePassTransform):
    """A transform of a contraction g: the network, its log-determinant's estimator, its solver.

    Args:
        net: g, any module from ``(N, *event)`` to ``(N, *event)`` with Lipschitz constant below 1.
        event_dim: number of event dimensions; default ``net.event_dim`` if there is one, else 1.
        logdet: estimator of the log-determinant, see :mod:`pyro_resflow.logdet`; default
            ``Exact()`` where ``net`` says that it takes events of up to 8 dimensions, else
            ``Krylov()``.
        solver: solver of the fixed point, see :mod:`pyro_resflow.solvers`; default ``Anderson()``.
        cache_size: 0 or 1.
    """

    def __init__(
        self,
        net: Network,
        *,
        event_dim: int | None = None,
        logdet: LogDet | None = None,
        solver: Solve | None = None,
        cache_size: int = 1,
    ) -> None:
        super().__init__(cache_size=cache_size)
        self.net = net
        self._event_dim = resolve_event_dim(net, event_dim)
        self._event_shape = known_event_shape(net, self._event_dim)
        self.logdet = logdet if logdet is not None else default_logdet(self._event_shape)
        self.solver = solver if solver is not None else Anderson()

    @constraints.dependent_property(is_discrete=False)
    def domain(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, self._event_dim)

    codomain = domain

    def _check(self, name: str, x: Tensor) -> None:
        check_dtype(name, x, self.net)
        if self._event_shape is not None:
            check_event_shape(name, x, self._event_shape)


def estimated(
    logdet: Callable[..., tuple[Tensor, Tensor]],
    net: Network,
    x: Tensor,
    event_dim: int,
    *function: SpectralFunction,
) -> tuple[Tensor, Tensor]:
    """g(x) and the log-determinant by an estimator, which a trace calls back."""
    check_settled(net)
    if tracing_state() is None:
        return logdet(net, x, event_dim, *function)
    network = as_linearizable(net)

    def computation(x: Tensor, *coefficients: Tensor) -> tuple[Tensor, Tensor]:
        return logdet(Fixed(network, coefficients), x, event_dim, *function)

    g, ladj = called_back(computation, x, *network.coefficients())
    return g, ladj


def solved(solver: Solve, net: Network, y: Tensor, event_dim: int) -> Tensor:
    """x with x + g(x) = y by a solver, which a trace calls back.

    Where nothing is validated, samples that are not finite come out as nan.
    """
    check_settled(net)
    finite = y.detach().isfinite().flatten(y.dim() - event_dim).all(-1)
    if y.is_meta or _is_all(finite) or is_validating():
        return _solved(solver, net, y, event_dim)
    # nan for these samples alone, as of a map that needs no solver
    beside = finite.reshape(*finite.shape, *[1] * event_dim)
    x = _solved(solver, net, torch.where(beside, y, 0), event_dim)
    return torch.where(beside, x, torch.nan)


def _is_all(samples: Tensor) -> bool:
    """Whether a mask is known to hold for all samples: vmap hides values, a trace meets others."""
    is_hidden = torch_func_is_active() or tracing_state() is not None
    return not is_hidden and bool(samples.all())


def _solved(solver: Solve, net: Network, y: Tensor, event_dim: int) -> Tensor:
    if tracing_state() is None:
        return solver(net, y, event_dim)
    network = as_linearizable(net)

    def computation(y: Tensor, *coefficients: Tensor) -> list[Tensor]:
        return [solver(Fixed(network, coefficients), y, event_dim)]

    return called_back(computation, y, *network.coefficients())[0]


def check_settled(net: object) -> None:
    """Raise if a network is another function of each batch, or at each call.

    Raises:
        ValueError: naming the layer and the remedies.
    """
    while isinstance(net, AutogradNetwork | Negative):
        net = net.net
    if isinstance(net, Chain) or not isinstance(net, nn.Module):
        return  # the layers of a chain are none of these
    for part in net.modules():
        if unsettled(part):
            mode = "training" if part.training else "evaluation"
            raise ValueError(
                f"net: its {type(part).__name__} in {mode} mode makes g another function of each "
                "batch or at each call, and log-determinant and inverse those of none. Call "
                "eval() on it, or normalise each sample by itself, as nn.LayerNorm does."
            )


@dataclass(frozen=True)
class Fixed:
    """A network at coefficients that have been computed, as the trace's inputs are.

    Args:
        net: the network.
        fixed: the coefficients.
    """

    net: Linearizable
    fixed: Sequence[Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        return self.net.evaluate(x, self.fixed)

    def coefficients(self) -> tuple[Tensor, ...]:
        return tuple(self.fixed)

    def evaluate(self, x: Tensor, coefficients: Sequence[Tensor]) -> Tensor:
        return self.net.evaluate(x, coefficients)

    def linearize(self, x: Tensor, coefficients: Sequence[Tensor] | None = None) -> Linearization:
        return self.net.linearize(x, self.fixed if coefficients is None else coefficients)


def default_logdet(event_shape: torch.Size | None, *, exact_up_to: int = EXACT_UP_TO) -> LogDet:
    """The exact log-determinant for small events, an unbiased estimate for others.

    Args:
        event_shape: the event shape, ``None`` if it is not known.
        exact_up_to: the largest number of dimensions that count as small.
    """
    small = event_shape is not None and event_shape.numel() <= exact_up_to
    return Exact() if small else Krylov()


def known_event_shape(net: object, event_dim: int) -> torch.Size | None:
    """The event shape that a network says it takes, if it says one of ``event_dim`` dimensions."""
    if hasattr(net, "event_shape") and len(net.event_shape) == event_dim:
        return torch.Size(net.event_shape)
    if hasattr(net, "input_dim") and event_dim == 1:
        return torch.Size((net.input_dim,))
    return None
