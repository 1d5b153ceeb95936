"""Published models that a configuration builds from numbers and class names alone."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import InitVar, dataclass
from functools import partial
from typing import Literal, TypeVar

from torch.distributions import Transform

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
from pyro_resflow.transforms import (
    AffineMap,
    Columns,
    CouplingStep,
    ElementwiseMap,
    LogisticMixtureMap,
)

Saved = TypeVar("Saved", bound=type)

SAVED_CLASSES: list[type] = []
"""Classes of the examples that files of weights name, beside those of the package."""


def saved_in_files(each: Saved) -> Saved:
    """Register a class, so that `examples.images.weights` loads files that name it."""
    SAVED_CLASSES.append(each)
    return each


MIXINGS = {"attention": GatedSelfAttention(), "maxout": GatedMaxout(), "none": None}
Mixing = Literal["attention", "maxout", "none"]


@saved_in_files
@dataclass(frozen=True)
class GatedStep:
    """The numbers of a coupling step of Flow++; the defaults are those for CIFAR-10.

    Attributes:
        channels: Width of the conditioner.
        blocks: Number of its blocks.
        elementwise: The coupling's map: a `LogisticMixtureMap` (by default, of 32 logistics), an
            `AffineMap`, or one of your own. Each coupling gets a copy.
        mixing: The layer after each gated convolution: attention between pixels, a layer with as
            many parameters that looks at one pixel alone, or none.
        dropout: Probability that a hidden entry is dropped.
        weight_norm: Whether convolutions have weight normalisation.
        last_activation: Whether an activation precedes the last convolution.
        mix_channels: Whether each half passes a 1x1 convolution before the coupling.
        components: The older form of `elementwise`, which saved files hold: the number of
            logistics, 0 for an affine map.

    Raises:
        TypeError: If `elementwise` is not an elementwise map.
        ValueError: If both `elementwise` and `components` are given.
    """

    channels: int = 96
    blocks: int = 10
    elementwise: ElementwiseMap | None = None
    mixing: Mixing = "attention"
    dropout: float = 0.2
    weight_norm: bool = False
    last_activation: bool = False
    mix_channels: bool = True
    components: InitVar[int | None] = None

    def __post_init__(self, components: int | None) -> None:
        if not isinstance(self.elementwise, ElementwiseMap | None):
            raise TypeError(
                f"elementwise: expected a map such as LogisticMixtureMap(32) or AffineMap(), got "
                f"{self.elementwise!r}"
            )
        if components is None:
            return
        if self.elementwise is not None:
            raise ValueError(
                f"components {components}, elementwise {type(self.elementwise).__name__}: both "
                "choose the coupling's map; leave components out, which is the older form"
            )
        chosen = LogisticMixtureMap(components) if components else AffineMap()
        object.__setattr__(self, "elementwise", chosen)  # past the frozen dataclass

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
        if self.elementwise is None:
            return CouplingStep(conditioner, mix_channels=self.mix_channels)
        copies = partial(deepcopy, self.elementwise)
        return CouplingStep(conditioner, copies, mix_channels=self.mix_channels)


@saved_in_files
@dataclass(frozen=True)
class Features:
    """The numbers of the network through which Flow++'s dequantizer sees an image.

    Attributes:
        channels: Width of the network.
        blocks: Number of its gated convolutions.
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


@saved_in_files
class FlowPlusPlus(flows.FlowPlusPlus):
    """Flow++ as the authors built it, with alternate columns where the paper has checkerboards.

    Args:
        event_shape: Channels, height and width of an image.
        couplings: Numbers of channel couplings and of spatial couplings at each scale.
        step: Numbers of each coupling.
        squeeze_first: Whether images are squeezed before the first scale.
        input_map: Transform from pixels to the real line; by default a logit.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        couplings: Sequence[tuple[int, int]] = ((0, 4), (2, 3)),
        step: GatedStep | None = None,
        squeeze_first: bool = False,
        input_map: Transform | None = None,
    ) -> None:
        recipe = (step if step is not None else GatedStep()).recipe()
        super().__init__(
            event_shape,
            couplings,
            step=recipe,
            mask=Columns,
            squeeze_first=squeeze_first,
            input_map=input_map,
        )


@saved_in_files
class VariationalDequantization(transforms.VariationalDequantization):
    """Flow++'s dequantizer as the authors built it, on alternate columns.

    Args:
        event_shape: Channels, height and width of an image.
        bins: Number of grey levels.
        couplings: Number of couplings.
        step: Numbers of each coupling; by default 2 blocks.
        features: Numbers of the network through which the dequantizer sees the image.
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


@saved_in_files
class Glow(flows.Glow):
    """Glow whose conditioners have a given width.

    Args:
        event_shape: Channels, height and width of an image.
        steps: Number of steps at each level.
        channels: Width of the conditioners.
        input_map: Transform from pixels to the real line; by default none.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        steps: Sequence[int] = (32, 32, 32),
        channels: int = 512,
        input_map: Transform | None = None,
    ) -> None:
        network = ConvConditioner(channels)
        super().__init__(event_shape, steps, network=network, input_map=input_map)


def _convolution(weight_norm: bool) -> type[InitializedConv2d]:
    return WeightNormConv2d if weight_norm else InitializedConv2d
