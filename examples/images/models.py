"""Published models by their numbers alone, as configurations name them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pyro_resflow import flows, transforms
from pyro_resflow.nn import (
    ConvConditioner,
    GatedAttentionConditioner,
    GatedEncoder,
    GatedMaxout,
    GatedSelfAttention,
    InitializedConv2d,
    WeightNormConv2d,
)
from pyro_resflow.transforms import AffineMap, Columns, CouplingStep, LogisticMixtureMap

MIXINGS = {"attention": GatedSelfAttention(), "maxout": GatedMaxout(), "none": None}
Mixing = Literal["attention", "maxout", "none"]


@dataclass(frozen=True)
class GatedStep:
    """The numbers of a coupling step of Flow++; the defaults are those of CIFAR-10.

    Attributes:
        channels: Width of the conditioner.
        blocks: Its blocks.
        components: Logistic distributions in each mixture; 0 for an affine map instead.
        mixing: What follows each gated convolution: attention between pixels, a layer of as many
            parameters that does not look at other pixels, or nothing.
        dropout: Probability that a hidden entry is dropped.
        weight_norm: Whether convolutions have weight normalisation.
        last_activation: Whether an activation precedes the last convolution.
        mix_channels: Whether each half passes a 1x1 convolution before the coupling.
    """

    channels: int = 96
    blocks: int = 10
    components: int = 32
    mixing: Mixing = "attention"
    dropout: float = 0.2
    weight_norm: bool = False
    last_activation: bool = False
    mix_channels: bool = True

    def recipe(self) -> CouplingStep:
        """Return the recipe of the step."""
        conditioner = GatedAttentionConditioner(
            self.channels,
            self.blocks,
            mixing=MIXINGS[self.mixing],
            dropout=self.dropout,
            convolution=_convolution(self.weight_norm),
            last_activation=self.last_activation,
        )
        return CouplingStep(conditioner, self._elementwise, mix_channels=self.mix_channels)

    def _elementwise(self) -> AffineMap | LogisticMixtureMap:
        return LogisticMixtureMap(self.components) if self.components else AffineMap()


@dataclass(frozen=True)
class Features:
    """The numbers of the network by which Flow++'s dequantizer looks at an image.

    Attributes:
        channels: Its width.
        blocks: Its gated convolutions.
        mixing: See `GatedStep`.
        norm: Whether layer normalisation follows each layer.
        dropout: Probability that a hidden entry is dropped.
        weight_norm: Whether convolutions have weight normalisation.
    """

    channels: int = 32
    blocks: int = 3
    mixing: Mixing = "none"
    norm: bool = False
    dropout: float = 0.2
    weight_norm: bool = False

    def recipe(self) -> GatedEncoder:
        """Return the recipe of the network."""
        return GatedEncoder(
            self.channels,
            self.blocks,
            norm=self.norm,
            mixing=MIXINGS[self.mixing],
            dropout=self.dropout,
            convolution=_convolution(self.weight_norm),
        )


class FlowPlusPlus(flows.FlowPlusPlus):
    """Flow++ as the authors built it: their checkerboards are in truth alternate columns.

    Args:
        event_shape: Channels, height and width of an image.
        couplings: Numbers of channel and of checkerboard couplings at each scale.
        step: Each coupling.
        squeeze_first: Whether images are squeezed before the first scale.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        couplings: Sequence[tuple[int, int]] = ((0, 4), (2, 3)),
        step: GatedStep | None = None,
        squeeze_first: bool = False,
    ) -> None:
        recipe = (step if step is not None else GatedStep()).recipe()
        super().__init__(
            event_shape, couplings, step=recipe, mask=Columns, squeeze_first=squeeze_first
        )


class VariationalDequantization(transforms.VariationalDequantization):
    """Flow++'s dequantizer as the authors built it, on alternate columns.

    Args:
        event_shape: Channels, height and width of an image.
        bins: Number of grey levels.
        couplings: Number of couplings.
        step: Each coupling; by default of 2 blocks.
        features: The network of the image.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        bins: int,
        couplings: int = 4,
        step: GatedStep | None = None,
        features: Features | None = None,
    ) -> None:
        super().__init__(
            event_shape,
            bins,
            couplings,
            step=(step if step is not None else GatedStep(blocks=2)).recipe(),
            features=(features if features is not None else Features()).recipe(),
            mask=Columns,
        )


class Glow(flows.Glow):
    """Glow with convolutions of a width.

    Args:
        event_shape: Channels, height and width of an image.
        steps: Number of steps at each level.
        channels: Width of the conditioners.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        steps: Sequence[int] = (32, 32, 32),
        channels: int = 512,
    ) -> None:
        super().__init__(event_shape, steps, network=ConvConditioner(channels))


def _convolution(weight_norm: bool) -> type[InitializedConv2d]:
    return WeightNormConv2d if weight_norm else InitializedConv2d
