"""A conditioner at full image size."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...rebuilding import Rebuildable
from .masks import Mask


class OnFullImage(Rebuildable, nn.Module):
    """A conditioner that sees the kept pixels at their places in the image.

    The kept half is laid on an image of zeros, with a context channel that is 1 where it lies; of
    the network's outputs those at the changed pixels are used. So a :class:`Checkerboard` shows
    every pixel's true neighbours, as in Real NVP, at twice the work of the packed halves.

    Args:
        mask: the coupling's mask.
        net: module ``net(image, context)`` to ``(N, parameters * C, H, W)`` from the image,
            ``(N, C, H, W)``, and the context, ``(N, 1 + context_channels, H, W)``, of which the
            first channel says where the kept half lies: for instance
            ``recipe(mask.event_shape, parameters * C, context_channels=1)`` of a recipe in
            :mod:`pyro_resflow.nn`.

    Reference:
        Dinh, Sohl-Dickstein and Bengio, Density Estimation Using Real NVP, 2017, section 3.4.
    """

    def __init__(self, mask: Mask, net: nn.Module) -> None:
        super().__init__()
        self.mask = mask
        self.net = net

    def forward(self, kept: Tensor, context: Tensor | None = None) -> Tensor:
        """Parameters of the changed half, ``(N, parameters * C, *changed)``.

        Args:
            kept: the kept half, shape ``(N, *mask.kept_shape)``.
            context: feature maps at the size of the image, if any.
        """
        zeros = kept.new_zeros((len(kept), *self.mask.changed_shape))
        where = self.mask.merge(torch.ones_like(kept), zeros)[:, :1]
        if context is not None:
            where = torch.cat([where, context], dim=1)
        return self.mask.split(self.net(self.mask.merge(kept, zeros), where))[1]
