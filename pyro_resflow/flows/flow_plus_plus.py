"""Flow++ for images (Ho et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch.distributions import Transform

from ..transforms import (
    ChannelHalves,
    Checkerboard,
    CouplingStep,
    Flatten,
    Logit,
    Mask,
    Squeeze,
)
from .image_flow import ImageFlow, checked_scales


class FlowPlusPlus(ImageFlow):
    """Flow++ for images: logit, then couplings by mixtures of logistics with self-attention.

    From image to noise: logit, and per scale the channel couplings, then the checkerboard ones,
    with a squeeze between scales; nothing is factored out. Each coupling comes with per-pixel
    normalisation and 1x1 convolutions, see :class:`pyro_resflow.transforms.CouplingStep`. It is
    made for images dequantized by :class:`pyro_resflow.transforms.VariationalDequantization`.

    The defaults are the authors' for CIFAR-10. Theirs for ImageNet have ``mix_channels=False``
    and ``last_activation=True``: at 32x32 ``couplings=((0, 7), (3, 3))`` with 20 blocks of 128
    channels and ``convolution=WeightNormConv2d``; at 64x64 ``squeeze_first`` and
    ``couplings=((0, 4), (2, 2), (2, 2))`` with 16 blocks of 96 channels and 4 components.

    Args:
        event_shape: ``(C, H, W)``.
        couplings: numbers of channel and of checkerboard couplings at each scale.
        step: recipe of each coupling with what precedes it.
        mask: makes the checkerboard couplings' masks of an event shape and a parity:
            :class:`pyro_resflow.transforms.Checkerboard` (default), or
            :class:`pyro_resflow.transforms.Columns` as in the authors' code.
        alpha: margin of the logit, see :class:`pyro_resflow.transforms.Logit`.
        squeeze_first: squeeze before the first scale, as for ImageNet 64x64.

    Raises:
        ValueError: if the image size does not divide into the scales, or a number of couplings is
            negative or not a pair.

    Reference:
        Ho et al., Flow++, 2019, and the authors' code.

    Example:
        >>> import torch
        >>> from pyro_resflow.flows import FlowPlusPlus
        >>> from pyro_resflow.nn import GatedAttentionConditioner
        >>> from pyro_resflow.transforms import CouplingStep
        >>> step = CouplingStep(GatedAttentionConditioner(channels=8, blocks=1))
        >>> flow = FlowPlusPlus((1, 8, 8), couplings=((0, 2), (2, 2)), step=step)
        >>> d = flow.distribution()
        >>> d.log_prob(torch.rand(16, 1, 8, 8)).shape
        torch.Size([16])
        >>> d.sample((3,)).shape
        torch.Size([3, 1, 8, 8])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        couplings: Sequence[tuple[int, int]] = ((0, 4), (2, 3)),
        *,
        step: CouplingStep | None = None,
        mask: Callable[[Sequence[int], int], Mask] = Checkerboard,
        alpha: float = 0.05,
        squeeze_first: bool = False,
    ) -> None:
        shape = checked_scales(
            event_shape, len(couplings), squeeze_first=squeeze_first, name="couplings"
        )
        if any(len(scale) != 2 or min(scale) < 0 for scale in couplings):
            raise ValueError(
                "couplings: expected two numbers that are not negative for each scale, got "
                f"{tuple(couplings)}."
            )
        step = step if step is not None else CouplingStep()
        parts: list[Transform] = [Logit(alpha, event_dim=3)]
        for scale, (by_channel, by_pixel) in enumerate(couplings):
            if scale or squeeze_first:
                parts.append(Squeeze())
                shape = parts[-1].forward_shape(shape)
            parts += [step(ChannelHalves(shape, swap=bool(i % 2))) for i in range(by_channel)]
            parts += [step(mask(shape, i % 2)) for i in range(by_pixel)]
        super().__init__([*parts, Flatten(shape)], event_shape)
