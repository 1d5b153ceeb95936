"""Real NVP for images (Dinh et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.distributions import Transform

from ..arguments import checked
from ..nn import ResidualConditioner
from ..transforms import (
    AffineMap,
    BatchNorm,
    ChannelHalves,
    ChannelPermutation,
    Checkerboard,
    LearnedLogScale,
    Squeeze,
)
from ..transforms.couplings.masks import first_half
from .assembly import UNCONDITIONAL, Assembly, ConditionalAssembly, Part
from .conditional import ConditionalImageFlow
from .contexts import EMBEDDING_DIM, context_of
from .image_flow import PUBLISHED_ALPHA, ImageFlow, checked_scales, input_maps


class RealNVP(ImageFlow):
    """Real NVP for images: a logit, then affine couplings with batch norms at several scales.

    From image to noise, a logit comes first. Each scale but the last has three checkerboard
    couplings, whose conditioners see the whole image, a squeeze, and three channel couplings; then
    half of the pixels, the black squares of a checkerboard, are factored out. The last scale has
    four checkerboard couplings. A :class:`pyro_resflow.transforms.BatchNorm` follows every
    coupling. The authors' code differs in two details: it normalises only the half that the
    coupling changes, and the log-scales of its channel couplings start with amplitude 1, while
    here all start with 0.

    The defaults are the authors' for CIFAR-10. Their ImageNet models have ``growth=2`` and at
    32x32 ``scales=4`` with ``ResidualConditioner(channels=32, blocks=4)``, at 64x64 ``scales=5``
    with 2 blocks.

    In training mode densities depend on the batch: call ``eval()`` before you use them.

    Args:
        event_shape: ``(C, H, W)``.
        scales: number of scales. The image size is halved from one to the next.
        network: recipe of the conditioners before the first squeeze; default
            ``ResidualConditioner(channels=64, blocks=8)``.
        growth: factor by which each squeeze multiplies the conditioners' width.
        alpha: margin of the logit, see :class:`pyro_resflow.transforms.Logit`.
        input_map: transform from pixels to the real line, in place of the logit: for instance
            :class:`pyro_resflow.transforms.MarginalGaussianization`, which reads it off the data.

    Raises:
        ValueError: if the image size is not divisible by the squeezes, if the last scale would
            have a single pixel, for a growth below 1, or if both an alpha and an input map are
            given.

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
        alpha: float = PUBLISHED_ALPHA,
        input_map: Transform | None = None,
    ) -> None:
        parts = real_nvp_parts(
            UNCONDITIONAL,
            event_shape,
            scales,
            network=network,
            growth=growth,
            alpha=alpha,
            input_map=input_map,
        )
        super().__init__(parts, event_shape)


class ConditionalRealNVP(ConditionalImageFlow):
    """Real NVP for images of a class, or given a vector.

    Each conditioner also receives the context, and the normal base distribution has its own means
    and standard deviations for each context.

    Args:
        event_shape: ``(C, H, W)``.
        scales: number of scales. The image size is halved from one to the next.
        num_classes: number of classes, if contexts are integer labels.
        context_dim: size of the contexts, if they are vectors.
        embedding_dim: size of the vector that is learned for each label.
        settings: further arguments of :class:`RealNVP`.

    Raises:
        ValueError: unless exactly one of ``num_classes`` and ``context_dim`` is given; for other
            causes see :class:`RealNVP`.

    Example:
        >>> import torch
        >>> from pyro_resflow.flows import ConditionalRealNVP
        >>> from pyro_resflow.nn import ResidualConditioner
        >>> network = ResidualConditioner(8, blocks=1)
        >>> flow = ConditionalRealNVP((1, 8, 8), num_classes=10, network=network)
        >>> labels = torch.randint(0, 10, (16,))
        >>> flow.condition(labels).distribution().log_prob(torch.rand(16, 1, 8, 8)).shape
        torch.Size([16])
    """

    @checked(RealNVP)
    def __init__(
        self,
        event_shape: Sequence[int],
        scales: int = 2,
        *,
        num_classes: int | None = None,
        context_dim: int | None = None,
        embedding_dim: int = EMBEDDING_DIM,
        **settings: Any,
    ) -> None:
        context = context_of(num_classes, context_dim, embedding_dim)
        parts = real_nvp_parts(ConditionalAssembly(context.size), event_shape, scales, **settings)
        super().__init__(parts, event_shape, context)


def real_nvp_parts(
    assembly: Assembly,
    event_shape: Sequence[int],
    scales: int,
    *,
    network: ResidualConditioner | None = None,
    growth: int = 1,
    alpha: float = PUBLISHED_ALPHA,
    input_map: Transform | None = None,
) -> list[Part]:
    """The parts of a Real NVP, from images to noise.

    Args:
        assembly: builds the parts that may depend on a context.
        event_shape: see :class:`RealNVP`.
        scales: see :class:`RealNVP`.
        network: see :class:`RealNVP`.
        growth: see :class:`RealNVP`.
        alpha: see :class:`RealNVP`.
        input_map: see :class:`RealNVP`.
    """
    shape = checked_scales(event_shape, scales, squeeze_first=False, name="scales")
    if shape[1:].numel() < 2 * 4 ** (scales - 1):
        raise ValueError(
            f"scales: expected at least two pixels at the last scale, got images "
            f"{tuple(shape)} with {scales} scales; take fewer."
        )
    if growth < 1:
        raise ValueError(f"growth: expected an integer of at least 1, got {growth}.")
    network = network if network is not None else ResidualConditioner(channels=64, blocks=8)
    levels: list[Part] = []
    for _ in range(scales - 1):
        squeeze = Squeeze()
        squeezed = squeeze.forward_shape(shape)
        wider = replace(network, channels=growth * network.channels)
        levels.append(
            assembly.compose(
                [
                    *_by_checkerboards(assembly, shape, 3, network),
                    squeeze,
                    *_by_channels(assembly, squeezed, 3, wider),
                    ChannelPermutation(_white_squares_first(shape[0])),
                ]
            )
        )
        shape, network = torch.Size((first_half(squeezed[0]), *squeezed[1:])), wider
    levels.append(assembly.compose(_by_checkerboards(assembly, shape, 4, network)))
    multiscale = assembly.multiscale(levels, event_shape)
    size = torch.Size(event_shape).numel()
    return [*input_maps(input_map, alpha), multiscale, *assembly.base(size)]


def _by_checkerboards(
    assembly: Assembly, shape: torch.Size, number: int, network: ResidualConditioner
) -> list[Part]:
    """Checkerboard couplings that see the whole image and keep either colour in turn."""
    parts: list[Part] = []
    for i in range(number):
        mask, affine = Checkerboard(shape, parity=i % 2), AffineMap(LearnedLogScale())
        parts += [assembly.coupling_on_image(mask, affine, network), _norm(shape)]
    return parts


def _by_channels(
    assembly: Assembly, shape: torch.Size, number: int, network: ResidualConditioner
) -> list[Part]:
    """Channel couplings that keep either half in turn."""
    parts: list[Part] = []
    for i in range(number):
        mask, affine = ChannelHalves(shape, swap=i % 2 == 1), AffineMap(LearnedLogScale())
        parts += [assembly.coupling(mask, affine, network), _norm(shape)]
    return parts


def _norm(shape: torch.Size) -> BatchNorm:
    return BatchNorm(shape[0], event_dim=3, epsilon=1e-4)


def _white_squares_first(channels: int) -> list[int]:
    """The order of squeezed channels with the white squares of each 2x2 block before the black."""
    return [4 * channel + square for square in (0, 3, 1, 2) for channel in range(channels)]
