"""A conditioner at full image size."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .masks import Mask


class OnFullImage(nn.Module):
    """A conditioner that sees the kept pixels at their places in the image.

    The kept half is laid on an image of zeros, one more channel says where it lies, and of the
    network's outputs those at the changed pixels are used. So a network of any image size serves
    a :class:`Checkerboard`, as in Real NVP, at twice the work of the packed halves.

    Args:
        mask: the coupling's mask.
        net: module from ``(N, C + 1, H, W)``, and the context if there is one, to
            ``(N, parameters * C, H, W)``.

    Reference:
        Dinh, Sohl-Dickstein and Bengio, Density Estimation Using Real NVP, 2017, section 3.4.
    """

    def __init__(self, mask: Mask, net: nn.Module) -> None:
        super().__init__()
        self.mask = mask
        self.net = net

    def forward(self, kept: Tensor, *context: Tensor) -> Tensor:
        """Parameters of the changed half, ``(N, parameters * C, *changed)``.

        Args:
            kept: the kept half, shape ``(N, *mask.kept_shape)``.
            context: what the network takes besides, if anything.
        """
        zeros = kept.new_zeros((len(kept), *self.mask.changed_shape))
        image = self.mask.merge(kept, zeros)
        where = self.mask.merge(torch.ones_like(kept), zeros)[:, :1]
        raw = self.net(torch.cat([image, where], dim=1), *context)
        return self.mask.split(raw)[1]
