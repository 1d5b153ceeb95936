"""A learned prior of the half that a split factors out."""

from __future__ import annotations

from collections.abc import Sequence

from ...nn import Conditioner
from ..couplings.coupling import Coupling
from ..couplings.maps import AffineMap, BoundedLogScale
from ..couplings.masks import ChannelHalves


class SplitPrior(Coupling):
    r"""A Gaussian prior of the factored-out half, of mean and scale learned from the kept half.

    Ahead of a :class:`Split`, the affine coupling :math:`(a, b) \mapsto (a, e^{s(a)} b + t(a))`
    makes standard normal what has a normal distribution with mean :math:`-t e^{-s}` and standard
    deviation :math:`e^{-s}` given a. What is factored out is that noise, so that reconstruction
    is exact.

    Args:
        event_shape: ``(C, H, W)`` of what is split.
        recipe: builds the network of the kept half, for instance
            :class:`pyro_resflow.nn.ConvConditioner`. Where its output is zero, so is the prior's
            part: a standard normal one.

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
