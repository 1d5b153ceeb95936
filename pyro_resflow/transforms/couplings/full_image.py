"""A conditioner that works at the image's full size."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...rebuilding import Rebuildable
from .masks import Mask


class OnFullImage(Rebuildable, nn.Module):
    """A conditioner that sees the kept pixels at their positions in the image.

    It places the kept half on an image of zeros and adds a context channel that is 1 at the kept
    pixels. Of the network's outputs it uses those at the changed pixels. With a
    :class:`Checkerboard`, the network then sees every pixel's true neighbours, as in Real NVP, at
    twice the work of the packed halves.

    Args:
        mask: the coupling's mask.
        net: module ``net(image, context)`` that returns ``(N, parameters * C, H, W)``. The image
            has shape ``(N, C, H, W)`` and the context ``(N, 1 + context_channels, H, W)``; the
            first context channel marks the kept half. For instance
            ``recipe(mask.event_shape, parameters * C, context_channels=1)`` with a recipe of
            :mod:`pyro_resflow.nn`.

    Reference:
        Dinh, Sohl-Dickstein and Bengio, Density Estimation Using Real NVP, 2017, section 3.4.

    Example:
        >>> import torch
        >>> from pyro_resflow.nn import ConvConditioner
        >>> from pyro_resflow.transforms import AffineMap, Checkerboard, Coupling, OnFullImage
        >>> mask, affine = Checkerboard((1, 8, 8)), AffineMap()
        >>> net = ConvConditioner(16)((1, 8, 8), affine.num_parameters, context_channels=1)
        >>> t = Coupling(mask, affine, OnFullImage(mask, net))
        >>> t(torch.randn(7, 1, 8, 8)).shape
        torch.Size([7, 1, 8, 8])
    """

    def __init__(self, mask: Mask, net: nn.Module) -> None:
        super().__init__()
        self.mask = mask
        self.net = net

    def forward(self, kept: Tensor, context: Tensor | None = None) -> Tensor:
        """Parameters of the changed half, ``(N, parameters * C, *changed)``.

        Args:
            kept: the kept half, shape ``(N, *mask.kept_shape)``.
            context: feature maps of the image's size, or None.
        """
        zeros = kept.new_zeros((len(kept), *self.mask.changed_shape))
        indicator = self.mask.merge(torch.ones_like(kept), zeros)[:, :1]
        context = indicator if context is None else torch.cat([indicator, context], dim=1)
        return self.mask.split(self.net(self.mask.merge(kept, zeros), context))[1]
