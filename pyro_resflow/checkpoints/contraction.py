"""A warning for flows that files say wrong norms of."""

from __future__ import annotations

import os
import warnings

import torch
from torch import nn

from ..nn import Chain, LipschitzLayer, check_contraction
from .errors import ContractionWarning
from .files import Path_

ALLOWANCE = 1.01
"""How much larger than its coefficient a norm may be measured, for iterations end somewhere."""


def warn_unless_contraction(flow: nn.Module, path: Path_) -> None:
    """Warn if the networks inside a flow are no contractions, as far as can be told.

    Each is either certified to be one, or its layers' norms, measured anew, are within their
    coefficients: the certified bound of an induced norm is far from its value.

    Args:
        flow: the flow.
        path: the file that it was loaded from.

    Warns:
        ContractionWarning: naming the layer, with its bound.
    """
    if not any(isinstance(part, Chain) for part in flow.modules()):
        return
    if any(tensor.is_meta for tensor in flow.parameters()):
        return
    try:
        check_contraction(flow)
    except ValueError as error:
        if not all(
            _is_within(part) for part in flow.modules() if isinstance(part, LipschitzLayer)
        ):
            warnings.warn(
                f"{os.fspath(path)}: the flow computes what the file says, but the norms in the "
                "file are too low for its weights: it may not be invertible. The next training "
                f"step measures them anew. In detail: {error}",
                ContractionWarning,
                stacklevel=3,
            )


@torch.no_grad()
def _is_within(layer: LipschitzLayer) -> bool:
    """Whether the effective weight has the norm that it is held to."""
    weight = layer.effective_weight().double()
    if not bool(weight.isfinite().all()):
        return False
    operator = layer.measured_operator(weight)
    u, v = layer.norm.iterate(operator, layer.u.double(), layer.v.double())
    return bool(layer.norm.sigma(operator, u, v) <= ALLOWANCE * layer.norm.coefficient)
