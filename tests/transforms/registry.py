"""One registry of all transforms, for tests that hold for all of them.

Each entry makes a transform in the exact log-determinant mode, in the default dtype, with its
input's event shape, and a function that draws inputs inside its domain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import pyro.distributions.transforms as pyro_transforms
import torch
from torch import Tensor
from torch.distributions import Transform

from pyro_resflow import (
    residual,
    residual_flow,
)
from pyro_resflow.flows import (
    ConvBlock,
    DenseNetBlock,
    FlowPlusPlus,
    Glow,
    ImageFlow,
    IResNet,
    MLPBlock,
    RealNVP,
    ResidualFlow,
)
from pyro_resflow.logdet import Exact
from pyro_resflow.nn import (
    ELU,
    ConvConditioner,
    CPila,
    GatedAttentionConditioner,
    GatedEncoder,
    GatedLipschitzMLP,
    GatedSelfAttention,
    LipschitzConvNet,
    LipschitzDenseNet,
    ResidualConditioner,
    initialize_by,
)
from pyro_resflow.rebuilding import Rebuildable
from pyro_resflow.transforms import (
    ActNorm,
    AffineMap,
    BatchNorm,
    ChannelHalves,
    ChannelPermutation,
    Checkerboard,
    Columns,
    Compose,
    Coupling,
    CouplingStep,
    ElementwiseMap,
    Flatten,
    Inverse,
    InvertibleConv1x1,
    LearnedLogScale,
    LogisticMixtureMap,
    Logit,
    MarginalGaussianization,
    Mask,
    Monotone,
    Multiscale,
    OnFullImage,
    OnHalves,
    Residual,
    SigmoidScale,
    Split,
    SplitPrior,
    Squeeze,
    TriangularAffine,
    UniformDequantization,
    VariationalDequantization,
    initialize,
    monotone,
)

Flow = TypeVar("Flow", bound=ImageFlow)


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
        initialize_by(transform, [self.draw(20, *self.event_shape)])
        with torch.no_grad():
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
    return with_images(flow)


def i_resnet(event_shape: tuple[int, ...]) -> IResNet:
    """A small i-ResNet, initialised from images."""
    network = ConvBlock(4, activation=ELU)
    return with_images(IResNet(event_shape, (1, 1), network=network, logdet=Exact()))


def with_images(flow: Flow) -> Flow:
    """The flow, initialised from images."""
    initialize(flow, torch.rand(20, *flow.event_shape))
    return flow


def flat(
    make: Callable[[tuple[int, ...]], Transform],
    event_shape: tuple[int, ...],
    draw: Callable[..., Tensor] = real,
) -> Case:
    """A case of an image flow, whose input is a flat vector."""
    return Case(lambda _: make(event_shape), (torch.Size(event_shape).numel(),), draw)


def of_marginals(gaussianize: MarginalGaussianization, event_shape: tuple[int, ...]) -> Transform:
    """From noise to images, by the marginals of some images."""
    gaussianize.fit(torch.rand(50, *event_shape) ** 2)
    return gaussianize.inv


class Halved(Rebuildable, torch.nn.Module):
    """A contraction for any weight: half a sine of a bounded input."""

    def forward(self, x: Tensor) -> Tensor:
        """Half of sin(x / 2)."""
        return 0.5 * torch.sin(0.5 * x)


class SmallConditioner(Rebuildable, torch.nn.Module):
    """A conditioner of one hidden layer, with or without a context beside the kept half."""

    def __init__(self, inputs: Sequence[int], outputs: int) -> None:
        super().__init__()
        image = len(inputs) == 3
        layer = partial(torch.nn.Conv2d, kernel_size=3, padding=1) if image else torch.nn.Linear
        self.first, self.last = layer(inputs[0], 8), layer(8, outputs)

    def forward(self, kept: Tensor, *context: Tensor) -> Tensor:
        """The parameters of the changed half."""
        return self.last(torch.tanh(self.first(torch.cat([kept, *context], dim=1))))


def coupling(mask: Mask, elementwise: ElementwiseMap) -> Coupling:
    """A coupling with a small conditioner of the packed half."""
    outputs = elementwise.num_parameters * mask.changed_shape[0]
    return Coupling(mask, elementwise, SmallConditioner(mask.kept_shape, outputs))


def full_image_coupling(mask: Mask, elementwise: ElementwiseMap) -> Coupling:
    """A coupling with a small conditioner of the whole image."""
    channels, *size = mask.event_shape
    net = SmallConditioner((channels + 1, *size), elementwise.num_parameters * channels)
    return Coupling(mask, elementwise, OnFullImage(mask, net))


def step(elementwise: Callable[[], ElementwiseMap], *, mix_channels: bool = True) -> CouplingStep:
    """A small step of Flow++, with attention."""
    conditioner = GatedAttentionConditioner(4, 1, GatedSelfAttention(2))
    return CouplingStep(conditioner, elementwise, mix_channels)


def variational_dequantization(event_shape: tuple[int, ...]) -> Transform:
    """Small variational dequantization of two grey levels at one image, initialised by others."""
    dequantization = VariationalDequantization(
        event_shape,
        2,
        2,
        step=step(partial(LogisticMixtureMap, 2)),
        features=GatedEncoder(2, 1, mixing=GatedSelfAttention(1)),
    )
    images = torch.randint(2, (20, *event_shape))
    initialize_by(dequantization.condition(images), [torch.randn(20, *event_shape)])
    return dequantization.condition(torch.arange(16).reshape(event_shape) % 2)


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
    "monotone": Case(lambda s: monotone(s[0], [8], logdet=Exact()), (3,)),
    "monotone_module": Case(
        lambda s: Monotone(
            torch.nn.Sequential(torch.nn.Linear(s[0], s[0]), Halved()), logdet=Exact()
        ),
        (3,),
    ),
    "monotone_dense_net": Case(
        lambda s: Monotone(
            LipschitzDenseNet(s, depth=2, growth=4, activation=CPila), logdet=Exact()
        ),
        (2, 3, 4),
    ),
    "residual_flow": Case(
        lambda s: residual_flow(s[0], blocks=2, hidden_dims=[8], logdet=Exact()), (4,)
    ),
    "residual_flow_density": Case(
        lambda s: residual_flow(s[0], 2, [8], fast="density", logdet=Exact()), (4,)
    ),
    "residual_gated": Case(
        lambda s: residual(s[0], [8], network=GatedLipschitzMLP, logdet=Exact()), (4,)
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
    "marginal_gaussianization": Case(
        lambda s: MarginalGaussianization(8, event_dim=1), (3,), draw=unit, trainable=False
    ),
    "marginal_gaussianization_image": Case(
        lambda s: of_marginals(MarginalGaussianization(5, s[0], learnable=True), s), (2, 3, 4)
    ),
    "marginal_gaussianization_pixels": Case(
        lambda s: of_marginals(MarginalGaussianization(3, s, learnable=True), s), (2, 3, 4)
    ),
    "act_norm": Case(lambda s: ActNorm(s[0]), (5,)),
    "act_norm_image": Case(lambda s: ActNorm(s[0], event_dim=3), (2, 3, 4)),
    "act_norm_pixels": Case(lambda s: ActNorm(s, event_dim=3), (2, 3, 4)),
    "on_halves": Case(
        lambda s: OnHalves(Checkerboard(s), InvertibleConv1x1(s[0]), ActNorm(s[0], event_dim=3)),
        (2, 3, 4),
    ),
    "coupling_step": Case(
        lambda s: step(partial(LogisticMixtureMap, 2))(ChannelHalves(s)), (3, 2, 2)
    ),
    "coupling_step_of_unequal_halves": Case(
        lambda s: step(AffineMap)(Checkerboard(s, parity=1)), (2, 3, 3)
    ),
    "triangular_affine": Case(lambda s: TriangularAffine(s[0]), (5,)),
    "coupling_vector": Case(lambda s: coupling(ChannelHalves(s), AffineMap()), (5,)),
    "coupling_vector_mixture": Case(
        lambda s: coupling(ChannelHalves(s, swap=True), LogisticMixtureMap(3)), (5,)
    ),
    "coupling_channels": Case(
        lambda s: coupling(ChannelHalves(s), AffineMap(SigmoidScale())), (3, 2, 3)
    ),
    "coupling_channels_mixture": Case(
        lambda s: coupling(ChannelHalves(s, swap=True), LogisticMixtureMap(2)), (3, 2, 3)
    ),
    "coupling_checkerboard": Case(
        lambda s: coupling(Checkerboard(s), AffineMap(LearnedLogScale())), (2, 3, 4)
    ),
    "coupling_checkerboard_mixture": Case(
        lambda s: coupling(Checkerboard(s, parity=1), LogisticMixtureMap(3)), (2, 3, 4)
    ),
    "coupling_columns": Case(lambda s: coupling(Columns(s, parity=1), AffineMap()), (2, 3, 4)),
    "coupling_columns_mixture": Case(
        lambda s: coupling(Columns(s), LogisticMixtureMap(3)), (2, 3, 4)
    ),
    "coupling_full_image": Case(
        lambda s: full_image_coupling(Checkerboard(s), AffineMap(LearnedLogScale())), (2, 3, 3)
    ),
    # in training mode the batches passed change it: tests/transforms/test_batch_norm.py
    "batch_norm": Case(lambda s: BatchNorm(s[0]).eval(), (5,), trainable=False),
    "batch_norm_image": Case(
        lambda s: BatchNorm(s[0], event_dim=3).eval(), (2, 3, 4), trainable=False
    ),
    "invertible_conv": Case(lambda s: InvertibleConv1x1(s[0]), (3, 2, 3)),
    "channel_permutation": Case(
        lambda s: ChannelPermutation([2, 0, 1]), (3, 2, 2), trainable=False
    ),
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
    "split_prior": Case(lambda s: SplitPrior(s, ConvConditioner(4)), (3, 2, 3)),
    "multiscale_learned_prior": Case(
        lambda s: Multiscale([Squeeze(), ActNorm(2, event_dim=3)], s, prior=ConvConditioner(4)),
        (1, 4, 4),
    ),
    "dequantization": Case(
        lambda s: UniformDequantization(8).condition(torch.arange(16).reshape(s) % 8),
        (1, 4, 4),
        draw=unit,
        trainable=False,
    ),
    "variational_dequantization": Case(variational_dequantization, (1, 4, 4), draw=unit),
    # noise of the bulk only: perturbed couplings send the rest where the logit rounds to 0 or 1
    "flow_plus_plus": flat(
        lambda s: with_images(
            FlowPlusPlus(s, ((0, 1), (1, 1)), step=step(partial(LogisticMixtureMap, 2)))
        ),
        (1, 4, 4),
        unit,
    ),
    "flow_plus_plus_as_for_imagenet64": flat(
        lambda s: with_images(
            FlowPlusPlus(
                s,
                ((1, 1),),
                step=step(AffineMap, mix_channels=False),
                mask=Columns,
                squeeze_first=True,
            )
        ),
        (1, 4, 4),
        unit,
    ),
    "image_flow": flat(lambda s: image_flow(s, blocks=(1, 1)), (1, 4, 4)),
    "image_flow_factor_out": flat(
        lambda s: image_flow(s, blocks=(1, 1), squeeze_first=True, factor_out=True), (1, 4, 4)
    ),
    "real_nvp": flat(
        lambda s: with_images(
            RealNVP(s, network=ResidualConditioner(4, blocks=1), growth=2).eval()
        ),
        (1, 4, 4),
    ),
    "glow": flat(lambda s: with_images(Glow(s, (1, 1), network=ConvConditioner(4))), (1, 4, 4)),
    "image_flow_monotone": flat(lambda s: image_flow(s, blocks=(1, 1), block=Monotone), (1, 4, 4)),
    "i_resnet": flat(i_resnet, (1, 4, 4)),
    "image_flow_dense_nets": flat(
        lambda s: ResidualFlow(s, (1,), network=DenseNetBlock(2, 4), end_blocks=0, logdet=Exact()),
        (2, 2, 3),
    ),
}
