"""The models that are compared, of about 300,000 parameters each on images of 14x14."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pyro.distributions import TransformModule

from pyro_resflow.flows import ConvBlock, DenseNetBlock, ResidualFlow
from pyro_resflow.nn import ELU

Shape = Sequence[int]


@dataclass(frozen=True)
class Contender:
    """A model to be compared.

    Attributes:
        title: Its name in tables and pictures.
        flow: Builds the flow for images of a shape.
        learning_rate: Of Adam.
    """

    title: str
    flow: Callable[[Shape], TransformModule]
    learning_rate: float = 1e-3


def residual_flow(shape: Shape, **options: object) -> ResidualFlow:
    """Build the anchor's architecture: 2 and 2 blocks, 64 wide, and 4 fully connected ones."""
    settings = {"network": ConvBlock(64), "alpha": 0.05}
    return ResidualFlow(shape, (2, 2), **{**settings, **options})


CONTENDERS = {
    "residual_flow_elu": Contender(
        "Residual Flow, ELU",
        lambda shape: residual_flow(shape, network=ConvBlock(64, activation=ELU)),
    ),
    "residual_flow_lipswish": Contender("Residual Flow, LipSwish", residual_flow),
    "i_densenet": Contender(
        "i-DenseNet", lambda shape: residual_flow(shape, network=DenseNetBlock(growth=28))
    ),
}
"""By the name that the command line takes."""
