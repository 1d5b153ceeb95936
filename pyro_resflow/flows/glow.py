"""Glow for images (Kingma and Dhariwal 2018)."""

from __future__ import annotations

from collections.abc import Sequence

from torch.distributions import Transform

from ..nn import Conditioner, ConvConditioner
from ..nn.conditioners.convolutional import ZeroConv2d
from ..transforms import (
    ActNorm,
    AffineMap,
    ChannelHalves,
    Compose,
    Coupling,
    InvertibleConv1x1,
    Multiscale,
    SigmoidScale,
    Squeeze,
)
from ..transforms.couplings.masks import first_half
from .image_flow import ImageFlow, checked_scales


class Glow(ImageFlow):
    """Glow for images: steps of ActNorm, 1x1 convolution and affine coupling at several levels.

    From image to noise, each level squeezes the image and applies steps of (ActNorm, invertible
    1x1 convolution, affine coupling of half of the channels). All levels but the last then factor
    out half of the channels, with a Gaussian prior that one convolution computes from the other
    half. The prior of the last level is a Gaussian for each channel, that is, an ActNorm.

    There is no logit, and the defaults are the authors' for CIFAR-10. The authors' code has
    details that the paper does not mention and that this class omits: an additional input channel
    that marks the image border in each 3x3 convolution, a learned gain after each hidden layer,
    couplings that shift before they scale, and unbounded log-scales of the learned priors.

    Args:
        event_shape: ``(C, H, W)``.
        steps: number of steps at each level.
        network: recipe of the conditioners; default ``ConvConditioner(channels=512)``.

    Raises:
        ValueError: if the image size is not divisible by the squeezes, or for a level without a
            step.

    Reference:
        Kingma and Dhariwal, Glow, 2018, section 3 and the authors' code.

    Example:
        >>> import torch
        >>> from pyro_resflow.flows import Glow
        >>> from pyro_resflow.nn import ConvConditioner
        >>> flow = Glow((1, 8, 8), steps=(2, 2), network=ConvConditioner(8))
        >>> d = flow.distribution()
        >>> d.log_prob(torch.rand(16, 1, 8, 8)).shape
        torch.Size([16])
        >>> d.sample((3,)).shape
        torch.Size([3, 1, 8, 8])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        steps: Sequence[int] = (32, 32, 32),
        *,
        network: Conditioner | None = None,
    ) -> None:
        shape = checked_scales(event_shape, len(steps), squeeze_first=True, name="steps")
        if min(steps) < 1:
            raise ValueError(f"steps: expected at least one at each level, got {tuple(steps)}.")
        network = network if network is not None else ConvConditioner()
        levels: list[Transform] = []
        channels, *size = shape
        for number in steps:
            channels, size = 4 * channels, [side // 2 for side in size]
            level: list[Transform] = [Squeeze()]
            for _ in range(number):
                level += _step((channels, *size), network)
            levels.append(Compose(level))
            channels = first_half(channels)
        levels[-1] = Compose([levels[-1], ActNorm(2 * channels, event_dim=3)])
        super().__init__([Multiscale(levels, event_shape, prior=_one_convolution)], event_shape)


def _step(shape: Sequence[int], network: Conditioner) -> list[Transform]:
    mask, affine = ChannelHalves(shape), AffineMap(SigmoidScale())
    net = network(mask.kept_shape, affine.num_parameters * mask.changed_shape[0])
    return [
        ActNorm(shape[0], event_dim=3),
        InvertibleConv1x1(shape[0]),
        Coupling(mask, affine, net),
    ]


def _one_convolution(
    in_shape: Sequence[int], out_channels: int, context_channels: int = 0
) -> ZeroConv2d:
    return ZeroConv2d(in_shape[0] + context_channels, out_channels)
