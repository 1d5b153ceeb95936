"""Call the network, estimator and solver of a block, with checks; traces call back into them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...callers import is_validating
from ...differentiation import torch_func_is_active
from ...linearization import (
    AutogradNetwork,
    Linearizable,
    Linearization,
    Negative,
    as_linearizable,
    flatten_batch,
    linearizable_module,
)
from ...logdet import LOG_ONE_PLUS, LogDetEstimator, SpectralFunction
from ...nn import Chain
from ...nn.stages import StagedNetwork
from ...solvers import FixedPointSolver
from ...solvers.convergence import which
from ...tracing import called_back, tracing_state
from ..core.determinism import varies_between_calls

Network = nn.Module | Linearizable


def evaluated(net: Network, x: Tensor, event_dim: int) -> Tensor:
    """g(x), same shape as x."""
    check_settled(net)
    flat, _ = flatten_batch(x, event_dim)
    # checking the protocol takes longer than an operation
    if not isinstance(net, Chain | StagedNetwork):
        net = net if isinstance(net, Linearizable) else linearizable_module(net)
    value: Tensor = net(flat)
    return value.reshape(x.shape)


def estimated(
    logdet: LogDetEstimator,
    net: Network,
    x: Tensor,
    event_dim: int,
    function: SpectralFunction = LOG_ONE_PLUS,
) -> tuple[Tensor, Tensor]:
    """g(x) and the log-determinant by an estimator; a trace calls back into it."""
    check_settled(net)
    if tracing_state() is None:
        return logdet(net, x, event_dim, function)
    network = as_linearizable(net)

    def computation(x: Tensor, *coefficients: Tensor) -> tuple[Tensor, Tensor]:
        return logdet(Fixed(network, coefficients), x, event_dim, function)

    g, ladj = called_back(computation, x, *network.coefficients())
    return g, ladj


def solved(solver: FixedPointSolver, net: Network, y: Tensor, event_dim: int) -> Tensor:
    """x with x + g(x) = y by a solver; a trace calls back into it.

    With validation off, samples of y that are not finite come out as nan.
    """
    check_settled(net)
    if y.is_meta or is_validating():  # the solver checks y
        return _solved(solver, net, y, event_dim)
    finite = y.detach().isfinite().flatten(y.dim() - event_dim).all(-1)
    if _is_all(finite):
        return _solved(solver, net, y, event_dim)
    # nan for these samples alone, as a map without a solver would return
    mask = finite.reshape(*finite.shape, *[1] * event_dim)
    x = _solved(solver, net, torch.where(mask, y, 0), event_dim)
    return torch.where(mask, x, torch.nan)


def without_nan(y: Tensor, context: Tensor, event_dim: int) -> tuple[Tensor, Tensor]:
    """Replace y by nan, and its contexts, ``(N, *)``, by 0, where a context is not finite.

    Raises:
        ValueError: if a context is not finite, with validation on.
    """
    finite = context.detach().isfinite().flatten(1).all(-1)
    if y.is_meta or _is_all(finite):
        return y, context
    if is_validating():
        if torch_func_is_active() or tracing_state() is not None:
            return y, context  # values cannot be read here; the solver reports failures
        raise ValueError(
            f"context: expected finite values, got nan or infinity for "
            f"{which(~finite, 'samples')}. "
            "With validate_args=False, these samples alone come out as nan."
        )
    mask = finite.reshape(*y.shape[: y.dim() - event_dim], *[1] * event_dim)
    among = finite.reshape(-1, *[1] * (context.dim() - 1))
    return torch.where(mask, y, torch.nan), torch.where(among, context, 0)


def _is_all(samples: Tensor) -> bool:
    """Whether a mask is known to hold for all samples; never under vmap or in a trace."""
    is_hidden = torch_func_is_active() or tracing_state() is not None
    return not is_hidden and bool(samples.all())


def _solved(solver: FixedPointSolver, net: Network, y: Tensor, event_dim: int) -> Tensor:
    if tracing_state() is None:
        return solver(net, y, event_dim)
    network = as_linearizable(net)

    def computation(y: Tensor, *coefficients: Tensor) -> list[Tensor]:
        return [solver(Fixed(network, coefficients), y, event_dim)]

    return called_back(computation, y, *network.coefficients())[0]


def check_settled(net: object) -> None:
    """Raise if a network computes a different function for each batch, or at each call.

    Raises:
        ValueError: naming the layer and the remedies.
    """
    while isinstance(net, AutogradNetwork | Negative):
        net = net.net
    if isinstance(net, Chain) or not isinstance(net, nn.Module):
        return  # the layers of a chain do not
    for part in net.modules():
        if varies_between_calls(part):
            mode = "training" if part.training else "evaluation"
            raise ValueError(
                "net: expected a network that computes the same function at every call, got one "
                f"with a {type(part).__name__} in {mode} mode, which depends on the batch or "
                "changes between calls; call eval() on it, or normalise each sample by itself, "
                "as nn.LayerNorm does."
            )


@dataclass(frozen=True)
class Fixed:
    """A network with given coefficients in place of its own: the inputs of a trace.

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
