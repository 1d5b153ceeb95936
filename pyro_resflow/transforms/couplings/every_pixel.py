"""A vector as the context of a conditioner of images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...rebuilding import Rebuildable


class AtEveryPixel(Rebuildable, nn.Module):
    """A conditioner that receives a context vector at every pixel, as constant feature maps.

    Args:
        net: module ``net(kept, context)`` with a context of shape ``(N, context_dim, H, W)``, for
            instance ``recipe(in_shape, outputs, context_dim)`` with a recipe of
            :mod:`pyro_resflow.nn`.
        size: ``(H, W)``.

    Example:
        >>> import torch
        >>> from pyro_resflow.nn import ConvConditioner
        >>> from pyro_resflow.transforms import AtEveryPixel
        >>> net = AtEveryPixel(ConvConditioner(8)((2, 4, 4), 4, context_channels=5), (4, 4))
        >>> net(torch.randn(7, 2, 4, 4), torch.randn(7, 5)).shape
        torch.Size([7, 4, 4, 4])
    """

    def __init__(self, net: nn.Module, size: Sequence[int]) -> None:
        super().__init__()
        self.net = net
        self.size = torch.Size(size)

    def forward(self, kept: Tensor, context: Tensor) -> Tensor:
        """Parameters of the changed half.

        Args:
            kept: the kept half, shape ``(N, *kept_shape)``.
            context: shape ``(N, context_dim)``.
        """
        maps = context[:, :, None, None].expand(*context.shape, *self.size)
        parameters: Tensor = self.net(kept, maps)
        return parameters
