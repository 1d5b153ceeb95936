"""Iteration over the parts of a flow."""

from __future__ import annotations

from collections.abc import Iterator

import pyro.distributions as dist
from torch import nn
from torch.distributions import Distribution, Transform

HOLDERS = Distribution | dist.ConditionalDistribution | Transform
"""Types that hold transforms without being modules."""


def inside(flow: object) -> Iterator[object]:
    """Yield the modules, transforms and distributions inside a flow, itself first, each once.

    Distributions and torch's own compositions and inverses are not modules: their parts are found
    among their attributes.
    """
    seen: set[int] = set()
    waiting = [flow]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list | tuple):
            waiting.extend(part)
        elif isinstance(part, nn.Module | HOLDERS) and id(part) not in seen:
            seen.add(id(part))
            yield part
            if isinstance(part, nn.Module):
                waiting.extend(part.children())
            if isinstance(part, HOLDERS):
                waiting.extend(vars(part).values())
