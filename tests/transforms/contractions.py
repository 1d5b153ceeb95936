"""Transforms made of contractions that are far from linear, for tests of derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Transform

from pyro_resflow import (
    conditional_residual,
    conditional_residual_flow,
    residual,
    residual_flow,
)
from pyro_resflow.transforms import Monotone, Residual, monotone
from tests.versions import torch_is

from .registry import Halved

CHECKS = None if torch_is("2.7") else False
"""``validate_args``: torch before 2.7 checks values by branches, which torch.func cannot map."""

Make = Callable[[int, Any], Transform]


def conditioned(factory: Callable[..., Any], dim: int, *args: Any, **options: Any) -> Transform:
    """A conditional transform at a context that the tests hold fixed."""
    context = torch.tensor([0.3, -0.7], dtype=torch.float64)
    return stretched(factory(dim, 2, *args, **options).double()).condition(context)


def module(dim: int) -> nn.Module:
    """A contraction with none of our methods."""
    return nn.Sequential(nn.Linear(dim, dim), Halved())


CONTRACTIONS: dict[str, Make] = {
    "sampling": lambda d, e: residual(d, [8], logdet=e),
    "density": lambda d, e: residual(d, [8], fast="density", logdet=e),
    "monotone": lambda d, e: monotone(d, [8], logdet=e),
    "conditional": lambda d, e: conditioned(conditional_residual, d, [8], logdet=e),
    "conditional_density": lambda d, e: conditioned(
        conditional_residual, d, [8], fast="density", logdet=e
    ),
    "conditional_flow": lambda d, e: conditioned(
        conditional_residual_flow, d, 2, [8], context_hidden_dims=[8], logdet=e
    ),
    "flow": lambda d, e: residual_flow(d, 2, [8], logdet=e),
    "flow_density": lambda d, e: residual_flow(d, 2, [8], fast="density", logdet=e),
    "module": lambda d, e: Residual(module(d), logdet=e),
    "monotone_module": lambda d, e: Monotone(module(d), logdet=e),
}


def at_a_context(**options: Any) -> Transform:
    conditional = conditional_residual(3, 2, [8], **options).double()
    return conditional.condition(torch.ones(2, dtype=torch.float64))


BLOCKS: dict[str, Callable[..., Transform]] = {
    "residual": lambda **options: residual(3, [8], **options),
    "monotone": lambda **options: monotone(3, [8], **options),
    "conditional": at_a_context,
}
"""Every kind of block of three dimensions, given an estimator or a solver."""


@torch.no_grad()
def stretched(transform: Any) -> Any:
    """The transform with weights that its constraints hold back."""
    for parameter in transform.parameters():
        parameter.mul_(4) if parameter.dim() > 1 else parameter.add_(0.3)
    return transform


def contraction(name: str, dim: int, logdet: object) -> Transform:
    """One of ``CONTRACTIONS``, in double precision."""
    transform = CONTRACTIONS[name](dim, logdet)
    if "conditional" not in name:
        transform.double()
    if "conditional" not in name and "module" not in name:  # nothing holds a module's weights back
        stretched(transform)
    with torch.no_grad():
        density(transform, dim).log_prob(point(dim, 50))  # which initialises an ActNorm
    return transform


def density(transform: Transform, dim: int) -> dist.TransformedDistribution:
    """The transform's distribution of normal noise."""
    noise = torch.zeros(dim, dtype=torch.float64)
    base = dist.Normal(noise, 1.0, validate_args=CHECKS).to_event(1)
    return dist.TransformedDistribution(base, [transform], validate_args=CHECKS)


def point(dim: int, *batch: int) -> Tensor:
    """Samples of it, more or less."""
    return torch.randn(*batch, dim, dtype=torch.float64)
