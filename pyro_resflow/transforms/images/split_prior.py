"""A learned prior for the half that a split factors out."""

from __future__ import annotations

from collections.abc import Sequence

from ...nn import Conditioner
from ..couplings.coupling import Coupling
from ..couplings.maps import AffineMap, BoundedLogScale
from ..couplings.masks import ChannelHalves


class SplitPrior(Coupling):
    r"""A Gaussian prior for the factored-out half, with mean and scale learned from the kept half.

    The affine coupling :math:`(a, b) \mapsto (a, e^{s(a)} b + t(a))` stands before a
    :class:`Split`. It makes b standard normal if b given a is normal with mean
    :math:`-t e^{-s}` and standard deviation :math:`e^{-s}`. The split then factors out this
    noise, from which the inverse reconstructs b exactly.

    Args:
        event_shape: ``(C, H, W)``, the events to split.
        recipe: builds the network of the kept half, for instance
            :class:`pyro_resflow.nn.ConvConditioner`. Where the network returns zeros, the prior
            is standard normal.

    Raises:
        ValueError: for a single channel.

    Reference:
        Kingma and Dhariwal, Glow, 2018; the authors' code.

    Example:
        >>> import torch
        >>> from pyro_resflow.nn import ConvConditioner
        >>> from pyro_resflow.transforms import SplitPrior
        >>> prior = SplitPrior((4, 8, 8), ConvConditioner(16))
        >>> prior(torch.randn(7, 4, 8, 8)).shape
        torch.Size([7, 4, 8, 8])
    """

    largest_log_scale = 5.0
    """The bound of the log-scales."""

    def __init__(self, event_shape: Sequence[int], recipe: Conditioner) -> None:
        mask = ChannelHalves(event_shape)
        elementwise = AffineMap(BoundedLogScale(self.largest_log_scale))
        outputs = elementwise.num_parameters * mask.changed_shape[0]
        super().__init__(mask, elementwise, recipe(mask.kept_shape, outputs))
