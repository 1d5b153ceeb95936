"""The length of a code of mapped images, by which a map of their pixels is chosen."""

from __future__ import annotations

import torch
from torch import Tensor

NEIGHBOURS = 0.6
"""Weight of the code that knows the neighbours. With 0.5, a Real NVP learned photographs more
slowly than with a logit, because the map was less linear."""

RIDGE = 1e-9
"""Relative addition to variances, so that fewer samples than entries have a finite code."""


def code_length(y: Tensor, log_slope: Tensor) -> float:
    r"""Nats per entry of a normal code of mapped images, up to a constant.

    It is a weighted mean of two codes. One takes each entry alone, as normal. The other takes an
    entry as normal given the pixels to the left and above, in all channels, and the channels
    before, with a linear mean and one variance for each channel. A flow is near the first when
    training starts, and can reach the second in a few steps. With the weight w of
    :data:`NEIGHBOURS`,

    .. math::
        \tfrac12\big((1 - w) \log\mathrm{Var}(y)
            + w \log\mathrm{Var}(y \mid \text{neighbours})\big) - \log\frac{dy}{dx}.

    Args:
        y: the mapped images, shape ``(N, C, H, W)``. A size of 1 has no neighbours.
        log_slope: the log of the map's slope at each entry, of the same shape.
    """
    top, left = int(y.shape[2] > 1), int(y.shape[3] > 1)
    parts = [y[:, :, top:, left:]]
    if left:
        parts.append(y[:, :, top:, :-1])
    if top:
        parts.append(y[:, :, :-1, left:])
    channels = y.shape[1]
    rows = torch.cat([part.cpu().double().transpose(0, 1).flatten(1) for part in parts])
    covariance = rows.cov().reshape(len(rows), len(rows))
    covariance.diagonal().mul_(1 + RIDGE)
    alone = covariance.diagonal()[:channels].log().sum()
    given = torch.logdet(covariance) - torch.logdet(covariance[channels:, channels:])
    variance = (1 - NEIGHBOURS) * alone + NEIGHBOURS * given
    return (variance / (2 * channels) - log_slope.double().mean()).item()
