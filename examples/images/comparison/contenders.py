"""The models of the comparison, each with about 300,000 parameters for images of 14x14."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn
from torch.distributions import Transform
from torch.optim import Optimizer

from examples.images.comparison.kinds import AdamByKind, MuonByKind
from examples.images.models import (
    Features,
    FlowPlusPlus,
    GatedStep,
    Glow,
    Mixing,
    VariationalDequantization,
)
from examples.images.task import uniform_noise
from pyro_resflow.flows import (
    ConvBlock,
    DenseNetBlock,
    ImageFlow,
    Jet,
    MLPBlock,
    RealNVP,
    ResidualFlow,
)
from pyro_resflow.logdet import PowerSeries
from pyro_resflow.nn import (
    ELU,
    Activation,
    CLipSwish,
    CPila,
    ResidualConditioner,
    SharpLipSwish,
    TransformerConditioner,
)
from pyro_resflow.transforms import (
    AffineMap,
    Dequantization,
    LogisticMixtureMap,
    MarginalGaussianization,
    Monotone,
)

Shape = Sequence[int]


ADAM = AdamByKind(1e-3)
"""Adam at the rate of most published runs."""


@dataclass(frozen=True)
class Contender:
    """A model of the comparison, with its optimizer.

    Attributes:
        title: Its name in tables and pictures.
        flow: Builds the flow for the shape of an image, given an `input_map`.
        dequantizer: Builds the dequantization from the shape and the number of grey levels; its
            parameters count as the model's.
        input_map: Builds the input map from the number of grey levels.
        optimizer: Builds the optimizer from the model.
    """

    title: str
    flow: Callable[..., ImageFlow]
    dequantizer: Callable[[Shape, int], Dequantization] = uniform_noise
    input_map: Callable[[int], Transform] = MarginalGaussianization
    optimizer: Callable[[nn.Module], Optimizer] = ADAM

    def build(self, shape: Shape, bins: int) -> ImageFlow:
        """Return a new flow for images of a shape and a number of grey levels."""
        return self.flow(shape, input_map=self.input_map(bins))


def residual_flow(shape: Shape, **options: Any) -> ResidualFlow:
    """Build the anchor's architecture: 2 and 2 blocks of width 64, and 4 fully connected ones."""
    return ResidualFlow(shape, (2, 2), **{"network": ConvBlock(64), **options})


def deep_residual_flow(shape: Shape, **options: Any) -> ResidualFlow:
    """Build a deeper flow of about as many parameters: 4 and 4 blocks of width 32."""
    return ResidualFlow(shape, (4, 4), **{"network": ConvBlock(32), **options})


variational = partial(
    VariationalDequantization,
    couplings=2,
    step=GatedStep(channels=16, blocks=1, elementwise=LogisticMixtureMap(4), dropout=0.0),
    features=Features(channels=16, blocks=1, dropout=0.0),
)
"""The variational dequantizer of the contenders, with 37,748 parameters."""


RATES = {
    "Real NVP": 2e-3,
    "Glow": 2e-3,
    "Jet": 1e-2,
    "affine": 4e-3,
    "mixture": 1e-2,
    "residual": 3e-2,
}
"""The learning rate of each family, which short runs chose on images held out of the training
images: `compare families`."""

TITLES: dict[Mixing, str] = {"attention": "attention", "maxout": "no attention"}


def flow_plus_plus(step: GatedStep, noise: str, coupling: str, mixing: Mixing) -> Contender:
    """Return a contender of Flow++: 2 couplings, a squeeze, 4 couplings."""
    return Contender(
        f"Flow++: {noise}, {coupling}, {TITLES[mixing]}",
        partial(FlowPlusPlus, couplings=((0, 2), (2, 2)), step=step),
        variational if noise == "variational" else uniform_noise,
        optimizer=AdamByKind(RATES[coupling]),
    )


GATED = {
    ("uniform", "affine"): GatedStep(24, 3, AffineMap(), dropout=0.0),
    ("uniform", "mixture"): GatedStep(24, 2, LogisticMixtureMap(10), dropout=0.0),
    ("variational", "affine"): GatedStep(20, 4, AffineMap(), dropout=0.0),
    ("variational", "mixture"): GatedStep(24, 2, LogisticMixtureMap(6), dropout=0.0),
}
"""Steps of Flow++ with which all variants have about the same number of parameters."""


def residual(title: str, flow: Callable[..., ImageFlow], **options: Any) -> Contender:
    """Return a contender of residual blocks."""
    return Contender(title, flow, optimizer=AdamByKind(RATES["residual"]), **options)


def elu_flow(end: int = 128, coefficient: float = 0.98, **options: Any) -> partial[ResidualFlow]:
    """Return a builder of a Residual Flow with ELU, and its end blocks' width."""
    return partial(
        deep_residual_flow,
        network=ConvBlock(32, activation=ELU, coefficient=coefficient),
        end_network=MLPBlock((end, end), activation=ELU, coefficient=coefficient),
        **options,
    )


def lipswish_flow(end: int = 128) -> partial[ResidualFlow]:
    """Return a builder of a Residual Flow with LipSwish, given its end blocks' width."""
    return partial(
        deep_residual_flow,
        network=ConvBlock(32, activation=SharpLipSwish),
        end_network=MLPBlock((end, end), activation=SharpLipSwish),
    )


def dense_flow(
    growth: int,
    end_growth: int,
    stem: int,
    activation: Callable[[int], Activation],
    **options: Any,
) -> partial[ResidualFlow]:
    """Return a builder of a flow of i-DenseNet blocks.

    Args:
        growth: Growth of the blocks of images.
        end_growth: Growth of the end blocks.
        stem: Features of the end blocks' stem.
        activation: The activation of all blocks.
        options: Further arguments of `ResidualFlow`.
    """
    return partial(
        deep_residual_flow,
        network=DenseNetBlock(growth=growth, activation=activation),
        end_network=DenseNetBlock(growth=end_growth, stem=stem, activation=activation),
        **options,
    )


RESIDUAL: dict[str, Contender] = {
    "i_resnet": residual(
        "i-ResNet, series of 5 terms", elu_flow(coefficient=0.9, logdet=PowerSeries(5))
    ),
    "residual_flow_elu_uniform": residual("Residual Flow: ELU, uniform", elu_flow()),
    "residual_flow_lipswish_uniform": residual(
        "Residual Flow: LipSwish, uniform", lipswish_flow()
    ),
    "residual_flow_elu_variational": residual(
        "Residual Flow: ELU, variational", elu_flow(112), dequantizer=variational
    ),
    "residual_flow_lipswish_variational": residual(
        "Residual Flow: LipSwish, variational", lipswish_flow(112), dequantizer=variational
    ),
    "i_densenet": residual("i-DenseNet", dense_flow(24, 40, 64, CLipSwish)),
    # a block iterates in both directions, so that images pass through small ones
    "monotone": residual("Monotone flow", dense_flow(12, 48, 80, CPila, block=Monotone)),
    # last, because a torch before 2.9 refuses it
    "residual_flow_muon": Contender(
        "Residual Flow: Muon, (8, 8) blocks",
        partial(
            ResidualFlow,
            blocks=(8, 8),
            network=ConvBlock(16, activation=SharpLipSwish),
            end_network=MLPBlock((128, 128), activation=SharpLipSwish),
        ),
        optimizer=MuonByKind(0.1, RATES["residual"]),
    ),
}

COUPLINGS: dict[str, Contender] = {
    "real_nvp": Contender(
        "Real NVP",
        partial(RealNVP, scales=2, network=ResidualConditioner(27, blocks=2)),
        optimizer=AdamByKind(RATES["Real NVP"]),
    ),
    "jet": Contender(
        "Jet",
        partial(
            Jet,
            couplings=10,
            patch_size=2,
            network=TransformerConditioner(48, blocks=1, heads=4),
            channel_couplings=1,
        ),
        optimizer=AdamByKind(RATES["Jet"]),
    ),
    "glow": Contender(
        "Glow",
        partial(Glow, steps=(12,), channels=132),
        optimizer=AdamByKind(RATES["Glow"]),
    ),
    **{
        f"flow_plus_plus_{noise}_{coupling}_{TITLES[mixing].replace(' ', '_')}": (
            flow_plus_plus(replace(step, mixing=mixing), noise, coupling, mixing)
        )
        for (noise, coupling), step in GATED.items()
        for mixing in TITLES
    },
}

CONTENDERS = {**COUPLINGS, **RESIDUAL}
"""All models, by their name on the command line."""
