"""Build the parts of an image flow, with or without a context.

A published architecture is written once, as a function of an :class:`Assembly`. The base class
builds unconditional parts, :class:`ConditionalAssembly` the same parts conditional on a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..nn import Chain, ConditionalChain, Conditioner
from ..transforms import (
    AtEveryPixel,
    Compose,
    ConditionalAffine,
    ConditionalCompose,
    ConditionalCoupling,
    ConditionalMultiscale,
    ConditionalResidual,
    Coupling,
    CouplingStep,
    ElementwiseMap,
    Mask,
    Multiscale,
    OnFullImage,
    Residual,
)
from ..transforms.contractive.contraction_transform import ContractionTransform

Part = Any
"""A transform, or a conditional transform; both have ``forward_shape``."""


class Assembly:
    """Builds the unconditional parts of a flow."""

    def contraction(self, block: type[ContractionTransform], net: Chain, **options: Any) -> Part:
        """A block of a contraction.

        Args:
            block: class of the transform.
            net: the contraction.
            options: further arguments of the class.
        """
        return block(net, **options)

    def coupling(self, mask: Mask, elementwise: ElementwiseMap, network: Conditioner) -> Part:
        """A coupling whose conditioner sees the kept half."""
        outputs = elementwise.num_parameters * mask.changed_shape[0]
        return Coupling(mask, elementwise, network(mask.kept_shape, outputs))

    def coupling_on_image(
        self, mask: Mask, elementwise: ElementwiseMap, network: Conditioner
    ) -> Part:
        """A coupling whose conditioner sees the kept half at its place in the image."""
        outputs = elementwise.num_parameters * mask.event_shape[0]
        net = network(mask.event_shape, outputs, context_channels=1)
        return Coupling(mask, elementwise, OnFullImage(mask, net))

    def step(self, step: CouplingStep, mask: Mask) -> Part:
        """A step of Flow++."""
        return step(mask)

    def compose(self, parts: Sequence[Part]) -> Part:
        """A sequence of parts."""
        return Compose(parts)

    def multiscale(
        self, levels: Sequence[Part], event_shape: Sequence[int], prior: Conditioner | None = None
    ) -> Part:
        """Levels with half of the channels factored out after each but the last."""
        return Multiscale(levels, event_shape, prior=prior)

    def base(self, size: int) -> list[Part]:
        """The parts between the noise and the last vector of a size."""
        return []


UNCONDITIONAL = Assembly()


class ConditionalAssembly(Assembly):
    """Builds the parts of a flow that depend on a context vector.

    Each block and each coupling depends on the context. In the end, an affine map of every entry
    of the noise depends on it: a normal base distribution with its own means and standard
    deviations for each context.

    Args:
        context_dim: size of the vector.
    """

    def __init__(self, context_dim: int) -> None:
        self.context_dim = context_dim

    def contraction(self, block: type[ContractionTransform], net: Chain, **options: Any) -> Part:
        if block is not Residual:
            raise ValueError(
                "block: expected Residual, the only block that can depend on a context, got "
                f"{block.__name__}."
            )
        if not isinstance(net, Chain):
            raise ValueError(
                "network: expected a recipe of a pyro_resflow.nn.Chain, whose layers a context "
                f"can shift, got one of a {type(net).__name__}."
            )
        return ConditionalResidual(ConditionalChain(net, self.context_dim), **options)

    def coupling(self, mask: Mask, elementwise: ElementwiseMap, network: Conditioner) -> Part:
        outputs = elementwise.num_parameters * mask.changed_shape[0]
        net = network(mask.kept_shape, outputs, context_channels=self.context_dim)
        at_pixels = AtEveryPixel(net, mask.kept_shape[1:])
        return ConditionalCoupling(mask, elementwise, at_pixels, (self.context_dim,))

    def coupling_on_image(
        self, mask: Mask, elementwise: ElementwiseMap, network: Conditioner
    ) -> Part:
        outputs = elementwise.num_parameters * mask.event_shape[0]
        net = network(mask.event_shape, outputs, context_channels=1 + self.context_dim)
        at_pixels = AtEveryPixel(OnFullImage(mask, net), mask.event_shape[1:])
        return ConditionalCoupling(mask, elementwise, at_pixels, (self.context_dim,))

    def step(self, step: CouplingStep, mask: Mask) -> Part:
        return step.given_vector(mask, self.context_dim)

    def compose(self, parts: Sequence[Part]) -> Part:
        return ConditionalCompose(parts)

    def multiscale(
        self, levels: Sequence[Part], event_shape: Sequence[int], prior: Conditioner | None = None
    ) -> Part:
        return ConditionalMultiscale(levels, event_shape, prior=prior)

    def base(self, size: int) -> list[Part]:
        return [ConditionalAffine(size, self.context_dim)]
