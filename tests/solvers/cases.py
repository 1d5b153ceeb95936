"""The solvers of x + g(x) = y, and networks for them to invert."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import torch
from torch import Tensor, nn

from pyro_resflow.linearization import WithCoefficients
from pyro_resflow.nn import Chain, LipschitzLinear
from pyro_resflow.solvers import Anderson, FixedPoint, NewtonKrylov, Solver
from tests.networks import NETWORKS, converged_norm

SOLVERS: list[type[Solver]] = [FixedPoint, Anderson, NewtonKrylov]
LIPSCHITZ = 0.97


def network(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, torch.Size]:
    net, event_shape = NETWORKS[name](LIPSCHITZ)
    return net.to(dtype), event_shape


def linear_network(weight: Tensor) -> Chain:
    """x -> W x, with W brought to the Lipschitz constant."""
    layer = LipschitzLinear(*weight.shape, converged_norm(LIPSCHITZ), bias=False)
    layer.weight = nn.Parameter(100 * weight)
    return Chain([layer]).to(weight.dtype)


def evaluations(solve: Callable[[], Tensor]) -> int:
    """How often a solver evaluates the network."""
    call = WithCoefficients.__call__
    with (
        torch.no_grad(),
        mock.patch.object(WithCoefficients, "__call__", autospec=True, side_effect=call) as spy,
    ):
        solve()
    return spy.call_count
