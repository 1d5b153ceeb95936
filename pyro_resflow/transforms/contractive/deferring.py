"""Blocks whose log-determinants can be computed together with those of similar blocks."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor

from ...logdet import (
    LOG_ONE_PLUS,
    Exact,
    Frozen,
    LogDetEstimator,
    Probe,
    SpectralFunction,
    StochasticEstimator,
)
from ...nn import Chain, GatedLipschitzMLP
from ...nn.networks.chain import BoundChain
from ...nn.networks.gated import BoundGate
from ...rebuilding import settings
from ..core.deferred import Deferred, StackKey
from .calls import Network
from .contraction_transform import HoldsContraction

Bound = BoundChain | BoundGate

OF_A_BATCH = StochasticEstimator.value_and_trace, Exact.value_and_trace
"""The estimates that treat each sample of a batch alone."""

OF_A_SHAPE = Probe.draw, Frozen.draw
"""The draws that take nothing but shape, dtype and device from the point."""


def stack_key(holder: HoldsContraction, net: object) -> StackKey | None:
    """The key of a block, see :meth:`..core.one_pass.OnePass.stack_key`.

    Args:
        holder: the module with the estimator.
        net: the network.
    """
    if not isinstance(net, Chain | GatedLipschitzMLP) or holder._event_dim != 1:
        return None
    logdet = holder.logdet.chosen()
    if not _is_stackable(logdet):
        return None
    bound = net.bound()
    if not isinstance(bound, BoundChain | BoundGate):  # a subclass that evaluates itself
        return None
    layout, chosen = bound.layout(), settings(logdet)
    if layout is None or chosen is None:
        return None
    # the full Jacobian takes as many rows of features as there are inputs
    rows = bound.input_features() if isinstance(logdet, Exact) else 1
    return StackKey(layout, chosen, rows * bound.hidden_features())


def _is_stackable(logdet: LogDetEstimator) -> bool:
    """Whether an estimator of a stack gives what it gives for each block; a subclass may not."""
    kind = type(logdet)
    if kind.value_and_trace not in OF_A_BATCH or kind.__call__ is not LogDetEstimator.__call__:
        return False
    return not isinstance(logdet, StochasticEstimator) or type(logdet.probe).draw in OF_A_SHAPE


def evaluated_deferring(
    logdet: LogDetEstimator, net: Network, x: Tensor, function: SpectralFunction = LOG_ONE_PLUS
) -> tuple[Tensor, Deferred]:
    """g(x), same shape as x, and the log-determinant to be computed later.

    Args:
        logdet: the estimator.
        net: the network of a block with a key.
        x: the point, at its full batch shape.
        function: f.
    """
    bound: Bound = cast(Any, net).bound()
    batch_shape = x.shape[:-1]
    flat = x.reshape(batch_shape.numel(), x.shape[-1])
    value, inputs = bound.value_and_jacobian_inputs(flat, bound.coefficients())
    return value.reshape(x.shape), Deferred(logdet, bound, inputs, function, batch_shape, x)
