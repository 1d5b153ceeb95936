"""One step of Flow++, optionally conditional."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.distributions import Transform

from ...arguments import checked
from ...nn import Conditioner, GatedAttentionConditioner
from ..core.compose import Compose
from ..core.conditional import ConditionalCompose
from ..linear.invertible_conv import InvertibleConv1x1
from ..normalization.act_norm import ActNorm
from .coupling import ConditionalCoupling, Coupling
from .every_pixel import AtEveryPixel
from .full_image import OnFullImage
from .halves import OnHalves
from .logistic_mixture import LogisticMixtureMap
from .maps import ElementwiseMap
from .masks import Mask


@checked()
@dataclass(frozen=True)
class CouplingStep:
    """Recipe of one step of Flow++: normalise each pixel, mix the channels of each half, couple.

    If the mask's halves have different sizes, as on a checkerboard with an odd number of pixels,
    the conditioner sees the whole image through :class:`OnFullImage`.

    Args:
        conditioner: recipe of the coupling's network.
        elementwise: builds the map of the changed half: :class:`LogisticMixtureMap` (default) or
            :class:`AffineMap`.
        mix_channels: whether an invertible 1x1 convolution mixes the channels of each half before
            the coupling. The authors' CIFAR-10 model does this, their ImageNet models do not.

    Reference:
        Ho et al., Flow++, 2019, section 3 and the authors' code.

    Example:
        >>> import torch
        >>> from pyro_resflow.nn import GatedAttentionConditioner
        >>> from pyro_resflow.transforms import Checkerboard, CouplingStep, initialize
        >>> step = CouplingStep(GatedAttentionConditioner(channels=8, blocks=1))
        >>> t = step(Checkerboard((2, 4, 4)))
        >>> initialize(t, torch.randn(16, 2, 4, 4))
        >>> t(torch.randn(7, 2, 4, 4)).shape
        torch.Size([7, 2, 4, 4])
    """

    conditioner: Conditioner = field(default_factory=GatedAttentionConditioner)
    elementwise: Callable[[], ElementwiseMap] = LogisticMixtureMap
    mix_channels: bool = True

    def __call__(self, mask: Mask) -> Compose:
        """Build the step for a mask's events."""
        elementwise, net = self._coupling(mask, 0)
        return Compose([*self._normalize_and_mix(mask), Coupling(mask, elementwise, net)])

    def conditional(self, mask: Mask, context_channels: int) -> ConditionalCompose:
        """Build the step conditional on feature maps of size :meth:`conditioner_size`."""
        elementwise, net = self._coupling(mask, context_channels)
        context_shape = (context_channels, *self.conditioner_size(mask))
        coupling = ConditionalCoupling(mask, elementwise, net, context_shape)
        return ConditionalCompose([*self._normalize_and_mix(mask), coupling])

    def given_vector(self, mask: Mask, context_dim: int) -> ConditionalCompose:
        """Build the step conditional on vectors of a size."""
        elementwise, net = self._coupling(mask, context_dim)
        net = AtEveryPixel(net, self.conditioner_size(mask))
        coupling = ConditionalCoupling(mask, elementwise, net, (context_dim,))
        return ConditionalCompose([*self._normalize_and_mix(mask), coupling])

    @staticmethod
    def conditioner_size(mask: Mask) -> torch.Size:
        """Height and width of the conditioner's input: those of a half, or of the whole image."""
        equal = mask.kept_shape[1:] == mask.changed_shape[1:]
        return mask.kept_shape[1:] if equal else torch.Size(mask.event_shape[1:])

    def _normalize_and_mix(self, mask: Mask) -> list[Transform]:
        parts: list[Transform] = [ActNorm(mask.event_shape, event_dim=3)]
        if self.mix_channels:
            halves = (mask.kept_shape, mask.changed_shape)
            parts.append(OnHalves(mask, *(InvertibleConv1x1(shape[0]) for shape in halves)))
        return parts

    def _coupling(self, mask: Mask, context_channels: int) -> tuple[ElementwiseMap, nn.Module]:
        elementwise = self.elementwise()
        if self.conditioner_size(mask) == mask.kept_shape[1:]:
            outputs = elementwise.num_parameters * mask.changed_shape[0]
            return elementwise, self.conditioner(mask.kept_shape, outputs, context_channels)
        outputs = elementwise.num_parameters * mask.event_shape[0]
        net = self.conditioner(mask.event_shape, outputs, context_channels + 1)
        return elementwise, OnFullImage(mask, net)
