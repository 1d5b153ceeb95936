"""One registry of every transform, for the tests that hold of all of them.

Each entry makes a transform in the exact log-determinant mode, in the default dtype, with its
input's event shape, and a function that draws inputs inside its domain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyro.distributions.transforms as pyro_transforms
import torch
from pyro.distributions import ConditionalTransformModule
from torch import Tensor
from torch.distributions import Transform

from pyro_resflow import (
    conditional_residual,
    conditional_residual_flow,
    residual,
    residual_flow,
)
from pyro_resflow.flows import ConvBlock, DenseNetBlock, MLPBlock, ResidualFlow
from pyro_resflow.logdet import Exact
from pyro_resflow.nn import LipschitzConvNet, LipschitzDenseNet
from pyro_resflow.rebuilding import Rebuildable
from pyro_resflow.transforms import (
    ActNorm,
    Compose,
    ConditionalAffine,
    ConditionalCompose,
    ConditionalInverse,
    Flatten,
    Inverse,
    Logit,
    Multiscale,
    Residual,
    Split,
    Squeeze,
    TriangularAffine,
    UniformDequantization,
)


def real(*shape: int) -> Tensor:
    """Inputs on the real line."""
    return torch.randn(*shape)


def unit(*shape: int) -> Tensor:
    """Inputs on the unit interval."""
    return 0.05 + 0.9 * torch.rand(*shape)


@dataclass(frozen=True)
class Case:
    """A transform under test.

    Attributes:
        make: builds it for an event shape.
        event_shape: of the input.
        draw: draws inputs of a shape.
        trainable: whether it has parameters.
    """

    make: Callable[[tuple[int, ...]], Transform]
    event_shape: tuple[int, ...]
    draw: Callable[..., Tensor] = real
    trainable: bool = True

    def build(self) -> Transform:
        """The transform, deterministic and with its data-dependent parts initialised."""
        torch.manual_seed(0)
        transform = self.make(self.event_shape)
        with torch.no_grad():
            transform(self.draw(20, *self.event_shape))
            for parameter in getattr(transform, "parameters", tuple)():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return transform


def image_flow(event_shape: tuple[int, ...], **options: object) -> ResidualFlow:
    """A small image flow, initialised from images."""
    flow = ResidualFlow(
        event_shape,
        network=ConvBlock(4),
        end_blocks=1,
        end_network=MLPBlock((8,)),
        logdet=Exact(),
        **options,
    )
    with torch.no_grad():
        flow.inv(torch.rand(20, *event_shape))
    return flow


def flat(make: Callable[[tuple[int, ...]], Transform], event_shape: tuple[int, ...]) -> Case:
    """A case of an image flow, whose input is a flat vector."""
    return Case(lambda _: make(event_shape), (torch.Size(event_shape).numel(),))


TRANSFORMS: dict[str, Case] = {
    "residual_2": Case(lambda s: residual(s[0], [8], logdet=Exact()), (2,)),
    "residual_5": Case(lambda s: residual(s[0], [8, 8], logdet=Exact()), (5,)),
    "residual_density": Case(lambda s: residual(s[0], [8], fast="density", logdet=Exact()), (3,)),
    "residual_module": Case(
        lambda s: Residual(
            torch.nn.Sequential(torch.nn.Linear(s[0], s[0]), Halved()), logdet=Exact()
        ),
        (3,),
    ),
    "residual_conv": Case(
        lambda s: Residual(LipschitzConvNet(s, (4, 4)), logdet=Exact()), (2, 3, 4)
    ),
    "residual_dense_net": Case(
        lambda s: Residual(LipschitzDenseNet(s, depth=2, growth=4), logdet=Exact()), (2, 3, 4)
    ),
    "residual_flow": Case(
        lambda s: residual_flow(s[0], blocks=2, hidden_dims=[8], logdet=Exact()), (4,)
    ),
    "residual_flow_density": Case(
        lambda s: residual_flow(s[0], 2, [8], fast="density", logdet=Exact()), (4,)
    ),
    "inverse_of_pyros": Case(lambda s: Inverse(pyro_transforms.affine_coupling(s[0])), (4,)),
    "compose_with_pyros": Case(
        lambda s: Compose(
            [
                residual(s[0], [8], logdet=Exact()),
                pyro_transforms.Permute(torch.arange(s[0]).flip(0)),
                pyro_transforms.affine_coupling(s[0]),
                torch.distributions.AffineTransform(0.5, 2.0),
            ]
        ),
        (4,),
    ),
    "logit": Case(lambda s: Logit(0.05), (3,), draw=unit, trainable=False),
    "logit_image": Case(lambda s: Logit(1e-6, event_dim=3), (2, 3, 4), draw=unit, trainable=False),
    "act_norm": Case(lambda s: ActNorm(s[0]), (5,)),
    "act_norm_image": Case(lambda s: ActNorm(s[0], event_dim=3), (2, 3, 4)),
    "triangular_affine": Case(lambda s: TriangularAffine(s[0]), (5,)),
    "squeeze": Case(lambda s: Squeeze(), (1, 4, 6), trainable=False),
    "flatten": Case(Flatten, (2, 3, 4), trainable=False),
    "split": Case(lambda s: Split(ActNorm(2, event_dim=3), s), (3, 2, 2)),
    "multiscale": Case(
        lambda s: Multiscale(
            [
                Compose([ActNorm(1, event_dim=3), Squeeze()]),
                Residual(LipschitzConvNet((2, 2, 2), (4, 4)), logdet=Exact()),
            ],
            s,
        ),
        (1, 4, 4),
    ),
    "dequantization": Case(
        lambda s: UniformDequantization(8).condition(torch.arange(16).reshape(s) % 8),
        (1, 4, 4),
        draw=unit,
        trainable=False,
    ),
    "image_flow": flat(lambda s: image_flow(s, blocks=(1, 1)), (1, 4, 4)),
    "image_flow_factor_out": flat(
        lambda s: image_flow(s, blocks=(1, 1), squeeze_first=True, factor_out=True), (1, 4, 4)
    ),
    "image_flow_dense_nets": flat(
        lambda s: ResidualFlow(s, (1,), network=DenseNetBlock(2, 4), end_blocks=0, logdet=Exact()),
        (2, 2, 3),
    ),
}


class Halved(Rebuildable, torch.nn.Module):
    """A contraction for any weight: half a sine of a bounded input."""

    def forward(self, x: Tensor) -> Tensor:
        """Half of sin(x / 2)."""
        return 0.5 * torch.sin(0.5 * x)


def started(transform: ConditionalTransformModule) -> ConditionalTransformModule:
    """The transform with its ActNorms initialised, and away from where its affine maps start."""
    dims = [(m.input_dim, m.context_dim) for m in transform.modules() if hasattr(m, "context_dim")]
    input_dim, context_dim = dims[0]
    conditioned = transform.condition(torch.randn(20, context_dim))
    with torch.no_grad():
        conditioned(torch.randn(20, input_dim))
        for parameter in transform.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return transform


CONDITIONAL: dict[str, Callable[[int, int], ConditionalTransformModule]] = {
    "conditional_residual": lambda d, c: conditional_residual(d, c, [8], logdet=Exact()),
    "conditional_residual_density": lambda d, c: conditional_residual(
        d, c, [8], fast="density", logdet=Exact()
    ),
    "conditional_inverse": lambda d, c: ConditionalInverse(
        conditional_residual(d, c, [8, 8], logdet=Exact())
    ),
    "conditional_affine": lambda d, c: started(ConditionalAffine(d, c, [8])),
    "conditional_compose": lambda d, c: started(
        ConditionalCompose(
            [
                ActNorm(d),
                conditional_residual(d, c, [8], logdet=Exact()),
                pyro_transforms.Permute(torch.arange(d).flip(0)),
                pyro_transforms.conditional_affine_autoregressive(d, c, [8]),
            ]
        )
    ),
    "conditional_flow": lambda d, c: started(
        conditional_residual_flow(d, c, 2, [8], context_hidden_dims=[8], logdet=Exact())
    ),
    "conditional_flow_density": lambda d, c: started(
        conditional_residual_flow(
            d, c, 2, [8], context_hidden_dims=[8], fast="density", logdet=Exact()
        )
    ),
}
