"""Channels of zeros: the way to widen an invertible network."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ..rebuilding import Rebuildable


class InjectivePadding(Rebuildable, nn.Module):
    r"""Channels of zeros behind those of an image: :math:`x \mapsto [x, 0]`.

    This map is injective but not bijective, so it is not a transform with a density: images whose
    last channels are not zero are outside of its range. :meth:`inverse` is the left inverse, which
    drops these channels.

    Args:
        channels: number of channels to append.

    Shapes: ``(*batch, C, H, W)`` to ``(*batch, C + channels, H, W)``.

    Raises:
        ValueError: for a negative number of channels.

    Reference:
        Behrmann et al., Invertible Residual Networks, 2019, section 5.1; Jacobsen, Smeulders and
        Oyallon, i-RevNet, 2018.

    Example:
        >>> import torch
        >>> from pyro_resflow.nn import InjectivePadding
        >>> pad, x = InjectivePadding(13), torch.rand(7, 3, 8, 8)
        >>> pad(x).shape
        torch.Size([7, 16, 8, 8])
        >>> torch.equal(pad.inverse(pad(x)), x)
        True
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels < 0:
            raise ValueError(f"channels: expected an integer of at least 0, got {channels}.")
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, 0, 0, self.channels))

    def inverse(self, y: Tensor) -> Tensor:
        """y without its last channels, shape ``(*batch, C, H, W)``.

        Raises:
            ValueError: if y has no more channels than were appended.
        """
        if y.dim() < 3 or y.shape[-3] <= self.channels:
            raise ValueError(
                f"y: expected shape (*batch, C, H, W) with more than {self.channels} channels, "
                f"got {tuple(y.shape)}."
            )
        return y.narrow(-3, 0, y.shape[-3] - self.channels)
