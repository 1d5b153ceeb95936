"""Real NVP for images (Dinh et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.distributions import Transform

from ..nn import ResidualConditioner
from ..transforms import (
    AffineMap,
    BatchNorm,
    ChannelHalves,
    ChannelPermutation,
    Checkerboard,
    Compose,
    Coupling,
    LearnedLogScale,
    Logit,
    Multiscale,
    OnFullImage,
    Squeeze,
)
from ..transforms.couplings.masks import first_half
from .image_flow import ImageFlow, checked_scales


class RealNVP(ImageFlow):
    """Real NVP for images: logit, then affine couplings with batch norms at several scales.

    From image to noise, per scale: three couplings by checkerboards, whose conditioners see the
    whole image; a squeeze; three couplings by halves of the channels; and half of the pixels, the
    black squares of a checkerboard, are factored out. The last scale is four couplings by
    checkerboards. A :class:`pyro_resflow.transforms.BatchNorm` follows every coupling. In the
    authors' code it normalises the half alone that the coupling has changed, and the scales of
    the couplings by channels start with amplitude 1; here they start with 0, like the others.

    The defaults are the authors' for CIFAR-10. For ImageNet at 32x32 they are 4 scales of
    ``ResidualConditioner(channels=32, blocks=4)`` with ``growth=2``, at 64x64 5 scales with 2
    blocks.

    In training mode densities depend on the batch: call ``eval()`` before they are used.

    Args:
        event_shape: ``(C, H, W)``.
        scales: number of scales; the image is halved between them.
        network: recipe of the conditioners before the first squeeze; default
            ``ResidualConditioner(channels=64, blocks=8)``.
        growth: by what the conditioners' width is multiplied at each squeeze.
        alpha: margin of the logit, see :class:`pyro_resflow.transforms.Logit`.

    Raises:
        ValueError: if the image size does not divide into the scales, or for a growth below 1.

    Reference:
        Dinh, Sohl-Dickstein and Bengio, Density Estimation Using Real NVP, 2017, section 4.1, and
        the authors' code.

    Example:
        >>> import torch
        >>> from pyro_resflow.flows import RealNVP
        >>> from pyro_resflow.nn import ResidualConditioner
        >>> flow = RealNVP((1, 8, 8), scales=2, network=ResidualConditioner(8, blocks=1))
        >>> d = flow.distribution()
        >>> d.log_prob(torch.rand(16, 1, 8, 8)).shape
        torch.Size([16])
        >>> d.sample((3,)).shape
        torch.Size([3, 1, 8, 8])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        scales: int = 2,
        *,
        network: ResidualConditioner | None = None,
        growth: int = 1,
        alpha: float = 0.05,
    ) -> None:
        shape = checked_scales(event_shape, scales, squeeze_first=False, name="scales")
        if shape[1:].numel() < 2 * 4 ** (scales - 1):
            raise ValueError(
                f"scales: the last of {scales} would be left single pixels of images "
                f"{tuple(shape)}; take fewer."
            )
        if growth < 1:
            raise ValueError(f"growth: expected an integer of at least 1, got {growth}.")
        network = network if network is not None else ResidualConditioner(channels=64, blocks=8)
        levels: list[Transform] = []
        for _ in range(scales - 1):
            squeeze = Squeeze()
            squeezed = squeeze.forward_shape(shape)
            wider = replace(network, channels=growth * network.channels)
            levels.append(
                Compose(
                    [
                        *_by_checkerboards(shape, 3, network),
                        squeeze,
                        *_by_channels(squeezed, 3, wider),
                        ChannelPermutation(_white_squares_first(shape[0])),
                    ]
                )
            )
            shape, network = torch.Size((first_half(squeezed[0]), *squeezed[1:])), wider
        levels.append(Compose(_by_checkerboards(shape, 4, network)))
        super().__init__([Logit(alpha, event_dim=3), Multiscale(levels, event_shape)], event_shape)


def _by_checkerboards(
    shape: torch.Size, number: int, network: ResidualConditioner
) -> list[Transform]:
    """Couplings whose conditioners see the whole image, the kept colour in turn."""
    parts: list[Transform] = []
    for i in range(number):
        mask, affine = Checkerboard(shape, parity=i % 2), AffineMap(LearnedLogScale())
        net = network(shape, affine.num_parameters * shape[0], context_channels=1)
        parts += [Coupling(mask, affine, OnFullImage(mask, net)), _norm(shape)]
    return parts


def _by_channels(shape: torch.Size, number: int, network: ResidualConditioner) -> list[Transform]:
    """Couplings of the channels' halves, the kept half in turn."""
    parts: list[Transform] = []
    for i in range(number):
        mask, affine = ChannelHalves(shape, swap=i % 2 == 1), AffineMap(LearnedLogScale())
        net = network(mask.kept_shape, affine.num_parameters * mask.changed_shape[0])
        parts += [Coupling(mask, affine, net), _norm(shape)]
    return parts


def _norm(shape: torch.Size) -> BatchNorm:
    return BatchNorm(shape[0], event_dim=3, epsilon=1e-4)


def _white_squares_first(channels: int) -> list[int]:
    """The squeezed channels, those of the white squares of each 2x2 block ahead of the black."""
    return [4 * channel + square for square in (0, 3, 1, 2) for channel in range(channels)]
