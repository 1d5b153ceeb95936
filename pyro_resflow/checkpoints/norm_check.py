"""What there is to say of flows that files have wrong norms of."""

from __future__ import annotations

import copy

import torch
from torch import nn

from ..nn import Chain, LipschitzLayer, check_contraction

ALLOWANCE = 1.01
"""How much larger than its coefficient a norm may be measured, for iterations end somewhere."""

ITERATIONS = 1000
"""The most that a norm is iterated for this, whatever the file says: five times the default."""


def complaint(flow: nn.Module) -> str | None:
    """What to say of a flow whose networks are no contractions, as far as can be told.

    Each is either certified to be one, or its layers' norms, measured anew, are within their
    coefficients: the certified bound of an induced norm is far from its value.

    Args:
        flow: the flow, as a file describes it.

    Returns:
        A sentence that names the layer, with its bound; ``None`` if all is well.
    """
    if not any(isinstance(part, Chain) for part in flow.modules()):
        return None
    if any(tensor.is_meta for tensor in flow.parameters()):
        return None
    try:
        check_contraction(flow)
    except ValueError as error:
        layers = (part for part in flow.modules() if isinstance(part, LipschitzLayer))
        if not all(map(_is_within, layers)):
            return (
                "the flow computes what the file says, but the norms in the file are too low for "
                "its weights: it may not be invertible. The next training step measures them "
                f"anew. In detail: {error}"
            )
    return None


@torch.no_grad()
def _is_within(layer: LipschitzLayer) -> bool:
    """Whether the effective weight has the norm that it is held to."""
    weight = layer.effective_weight().double()
    if not bool(weight.isfinite().all()):
        return False
    operator = layer.measured_operator(weight)
    norm = copy.copy(layer.norm)
    norm.max_iterations = min(norm.max_iterations, ITERATIONS)
    u, v = norm.iterate(operator, layer.u.double(), layer.v.double())
    return bool(norm.sigma(operator, u, v) <= ALLOWANCE * norm.coefficient)
