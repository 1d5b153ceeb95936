"""Warn when a loaded flow's stored norms are too small for its weights."""

from __future__ import annotations

import copy

import torch
from torch import nn

from ..nn import Chain, LipschitzLayer, check_contraction

ALLOWANCE = 1.01
"""How far a measured norm may exceed its coefficient, because norm iterations are truncated."""

ITERATIONS = 1000
"""The largest number of norm iterations, even if the file allows more: five times the default."""


def norm_warning(flow: nn.Module) -> str | None:
    """The text of a warning if a network of the flow could not be verified to be a contraction.

    A network passes if it is certified to be a contraction, or if the norms of all layers,
    measured again, are within their coefficients. The second test is needed because the certified
    bound of an induced norm is far above its value.

    Args:
        flow: the flow as loaded from a file.

    Returns:
        A sentence that names the layer and its bound; ``None`` if every network passes.
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
                "the flow was loaded as stored, but the norms in the file are too small for its "
                "weights: it may not be invertible. The next training step measures them again. "
                f"In detail: {error}"
            )
    return None


@torch.no_grad()
def _is_within(layer: LipschitzLayer) -> bool:
    """Whether the norm of the effective weight is within the layer's coefficient."""
    weight = layer.effective_weight().double()
    if not bool(weight.isfinite().all()):
        return False
    operator = layer.measured_operator(weight)
    norm = copy.copy(layer.norm)
    norm.max_iterations = min(norm.max_iterations, ITERATIONS)
    u, v = norm.iterate(operator, layer.u.double(), layer.v.double())
    return bool(norm.sigma(operator, u, v) <= ALLOWANCE * norm.coefficient)
