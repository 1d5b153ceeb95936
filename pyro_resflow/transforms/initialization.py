"""Data-dependent initialisation of a whole flow."""

from __future__ import annotations

import torch
from pyro.distributions.conditional import ConditionalTransform
from torch import Tensor
from torch.distributions import Transform

from ..nn import DataInitialized
from .base import check_event_shape
from .determinism import inside
from .evaluation import clear_cache, inverse_value


def initialize(
    flow: Transform | ConditionalTransform, data: Tensor, context: Tensor | None = None
) -> None:
    """Let one batch of data initialise every part of a flow that a batch initialises.

    Every :class:`ActNorm` and :class:`BatchNorm`, and every layer of a conditioner that is
    initialised so, is put back to waiting, whatever it has seen or learned before; then the batch
    passes once, without gradients, from data to noise. A flow waits by itself for its first batch,
    so that this is for choosing that batch, and for starting again.

    Args:
        flow: from noise to data, such as an image flow or what a ``TransformedDistribution`` is
            built of; of a transform from data to noise give the inverse, ``t.inv``. The
            transform, or with a context the conditional transform.
        data: shape ``(*batch, *event_shape)``, at least two samples.
        context: what to condition on, one for each sample or for all.

    Raises:
        ValueError: for a single sample, for data that the flow does not take, or for a context
            without a conditional transform or the other way about.

    Example:
        >>> import torch
        >>> from pyro_resflow.flows import ConvBlock, ResidualFlow
        >>> from pyro_resflow.transforms import initialize
        >>> flow = ResidualFlow((1, 8, 8), blocks=(2, 2), network=ConvBlock(16))
        >>> initialize(flow, torch.rand(32, 1, 8, 8))
        >>> z = flow.inv(torch.rand(1, 1, 8, 8))
    """
    transform = _at(flow, context)
    event_dim = transform.codomain.event_dim
    batch_dim = max(data.dim() - event_dim, 0)
    check_event_shape("data", data, data.shape[batch_dim:])
    if data.shape[:batch_dim].numel() < 2:
        raise ValueError(
            f"data: expected a batch of at least two samples, got shape {tuple(data.shape)}; a "
            "single sample has no standard deviation."
        )
    for part in inside(flow):
        if isinstance(part, DataInitialized):
            part.await_batch()
    with torch.no_grad():
        inverse_value(transform, data)
    clear_cache(transform)


def _at(flow: Transform | ConditionalTransform, context: Tensor | None) -> Transform:
    """The transform at the context, if it takes one."""
    if isinstance(flow, ConditionalTransform):
        if context is None:
            raise ValueError("context: the flow is conditional; expected one for each sample.")
        return flow.condition(context)
    if context is not None:
        raise ValueError("context: expected none, the flow is not conditional.")
    return flow
