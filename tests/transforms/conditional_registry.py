"""One registry of all conditional transforms of vectors, for tests that hold for all of them.

Each entry makes a transform in the exact log-determinant mode from the sizes of its input and of
its context.
"""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions.transforms as pyro_transforms
import torch
from pyro.distributions import ConditionalTransformModule

from pyro_resflow import conditional_residual, conditional_residual_flow
from pyro_resflow.logdet import Exact
from pyro_resflow.nn import ConditionalGatedLipschitzMLP, initialize_by
from pyro_resflow.transforms import (
    ActNorm,
    AffineMap,
    ChannelHalves,
    ConditionalAffine,
    ConditionalCompose,
    ConditionalCoupling,
    ConditionalInverse,
    ElementwiseMap,
    LogisticMixtureMap,
    Mask,
)

from .registry import SmallConditioner


def conditional_coupling(
    mask: Mask, elementwise: ElementwiseMap, context_shape: tuple[int, ...]
) -> ConditionalCoupling:
    """A conditional coupling with a small conditioner of the packed half."""
    inputs = (mask.kept_shape[0] + context_shape[0], *context_shape[1:])
    net = SmallConditioner(inputs, elementwise.num_parameters * mask.changed_shape[0])
    return ConditionalCoupling(mask, elementwise, net, context_shape)


def started(
    transform: ConditionalTransformModule, input_dim: int, context_dim: int
) -> ConditionalTransformModule:
    """The transform with its ActNorms initialised, and away from where its affine maps start."""
    conditioned = transform.condition(torch.randn(20, context_dim))
    initialize_by(conditioned, [torch.randn(20, input_dim)])
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return transform


CONDITIONAL: dict[str, Callable[[int, int], ConditionalTransformModule]] = {
    "conditional_residual": lambda d, c: conditional_residual(d, c, [8], logdet=Exact()),
    "conditional_residual_density": lambda d, c: conditional_residual(
        d, c, [8], fast="density", logdet=Exact()
    ),
    "conditional_residual_gated": lambda d, c: conditional_residual(
        d, c, [8], network=ConditionalGatedLipschitzMLP, logdet=Exact()
    ),
    "conditional_inverse": lambda d, c: ConditionalInverse(
        conditional_residual(d, c, [8, 8], logdet=Exact())
    ),
    "conditional_affine": lambda d, c: started(ConditionalAffine(d, c, [8]), d, c),
    "conditional_compose": lambda d, c: started(
        ConditionalCompose(
            [
                ActNorm(d),
                conditional_residual(d, c, [8], logdet=Exact()),
                pyro_transforms.Permute(torch.arange(d).flip(0)),
                pyro_transforms.conditional_affine_autoregressive(d, c, [8]),
            ]
        ),
        d,
        c,
    ),
    "conditional_flow": lambda d, c: started(
        conditional_residual_flow(d, c, 2, [8], context_hidden_dims=[8], logdet=Exact()), d, c
    ),
    "conditional_flow_density": lambda d, c: started(
        conditional_residual_flow(
            d, c, 2, [8], context_hidden_dims=[8], fast="density", logdet=Exact()
        ),
        d,
        c,
    ),
    "conditional_coupling": lambda d, c: conditional_coupling(
        ChannelHalves((d,)), AffineMap(), (c,)
    ),
    "conditional_coupling_mixture": lambda d, c: conditional_coupling(
        ChannelHalves((d,), swap=True), LogisticMixtureMap(3), (c,)
    ),
}
