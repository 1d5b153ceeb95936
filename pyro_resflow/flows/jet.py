"""Jet for images (Kolesnikov, Pinto and Tschannen 2024)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.distributions import AffineTransform, Transform

from ..arguments import checked
from ..nn import TransformerConditioner
from ..transforms import (
    AffineMap,
    ChannelHalves,
    ChannelPermutation,
    Checkerboard,
    Columns,
    Flatten,
    Mask,
    Rows,
    SigmoidScale,
    Squeeze,
)
from .assembly import UNCONDITIONAL, Assembly, ConditionalAssembly, Part
from .conditional import ConditionalImageFlow
from .contexts import EMBEDDING_DIM, context_of
from .image_flow import ImageFlow

LARGEST_SCALE = 2.0
"""The scales of the couplings lie below this number, as in the authors' code."""


class Jet(ImageFlow):
    """Jet for images: affine couplings whose conditioners are vision transformers.

    From image to noise, images are mapped to [-1, 1], and a squeeze turns each patch into a pixel
    of many channels. Couplings of half of the channels follow, each after a fixed random
    permutation of the channels. After every few of them, a coupling changes half of the pixels:
    one colour of a checkerboard, every other column, or every other row, in turn. There is a
    single scale, and no normalisation or 1x1 convolution.

    The defaults are those of the authors' code for ImageNet 64x64. Two details differ. The
    authors' couplings shift before they scale. Their couplings of pixels split each pixel of the
    kept half into two tokens of half the channels.

    Args:
        event_shape: ``(C, H, W)``.
        couplings: number of couplings.
        patch_size: side of a patch.
        network: recipe of the conditioners; default ``TransformerConditioner()``.
        channel_couplings: number of couplings of channels before each coupling of pixels.
        input_map: transform from pixels to the real line, in place of the map to [-1, 1]: for
            instance :class:`pyro_resflow.transforms.MarginalGaussianization`.

    Raises:
        ValueError: if the patch size does not divide the image size, for fewer than 2x2 patches, a
            negative number of channel couplings, or a single channel to couple.

    Reference:
        Kolesnikov, Pinto and Tschannen, Jet: A Modern Transformer-Based Normalizing Flow, 2024,
        and the authors' code.

    Example:
        >>> import torch
        >>> from pyro_resflow.flows import Jet
        >>> from pyro_resflow.nn import TransformerConditioner
        >>> network = TransformerConditioner(8, blocks=1, heads=2)
        >>> flow = Jet((1, 8, 8), couplings=5, patch_size=2, network=network)
        >>> d = flow.distribution()
        >>> d.log_prob(torch.rand(16, 1, 8, 8)).shape
        torch.Size([16])
        >>> d.sample((3,)).shape
        torch.Size([3, 1, 8, 8])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        couplings: int = 32,
        *,
        patch_size: int = 4,
        network: TransformerConditioner | None = None,
        channel_couplings: int = 4,
        input_map: Transform | None = None,
    ) -> None:
        parts = jet_parts(
            UNCONDITIONAL,
            event_shape,
            couplings,
            patch_size=patch_size,
            network=network,
            channel_couplings=channel_couplings,
            input_map=input_map,
        )
        super().__init__(parts, event_shape)


class ConditionalJet(ConditionalImageFlow):
    """Jet for images of a class, or given a vector.

    Each conditioner also receives the context, and the normal base distribution has its own means
    and standard deviations for each context.

    Args:
        event_shape: ``(C, H, W)``.
        couplings: number of couplings.
        num_classes: number of classes, if contexts are integer labels.
        context_dim: size of the contexts, if they are vectors.
        embedding_dim: size of the vector that is learned for each label.
        settings: further arguments of :class:`Jet`.

    Raises:
        ValueError: unless exactly one of ``num_classes`` and ``context_dim`` is given; for other
            causes see :class:`Jet`.

    Example:
        >>> import torch
        >>> from pyro_resflow.flows import ConditionalJet
        >>> from pyro_resflow.nn import TransformerConditioner
        >>> network = TransformerConditioner(8, blocks=1, heads=2)
        >>> flow = ConditionalJet((1, 8, 8), 5, num_classes=10, network=network)
        >>> labels = torch.randint(0, 10, (16,))
        >>> flow.condition(labels).distribution().log_prob(torch.rand(16, 1, 8, 8)).shape
        torch.Size([16])
    """

    @checked(Jet)
    def __init__(
        self,
        event_shape: Sequence[int],
        couplings: int = 32,
        *,
        num_classes: int | None = None,
        context_dim: int | None = None,
        embedding_dim: int = EMBEDDING_DIM,
        **settings: Any,
    ) -> None:
        context = context_of(num_classes, context_dim, embedding_dim)
        assembly = ConditionalAssembly(context.size)
        parts = jet_parts(assembly, event_shape, couplings, **settings)
        super().__init__(parts, event_shape, context)


def jet_parts(
    assembly: Assembly,
    event_shape: Sequence[int],
    couplings: int,
    *,
    patch_size: int = 4,
    network: TransformerConditioner | None = None,
    channel_couplings: int = 4,
    input_map: Transform | None = None,
) -> list[Part]:
    """The parts of a Jet, from images to noise.

    Args:
        assembly: builds the parts that may depend on a context.
        event_shape: see :class:`Jet`.
        couplings: see :class:`Jet`.
        patch_size: see :class:`Jet`.
        network: see :class:`Jet`.
        channel_couplings: see :class:`Jet`.
        input_map: see :class:`Jet`.
    """
    shape = _patches(event_shape, patch_size)
    if couplings < 1 or channel_couplings < 0:
        raise ValueError(
            "couplings, channel_couplings: expected at least 1 and 0, got "
            f"{couplings} and {channel_couplings}."
        )
    network = network if network is not None else TransformerConditioner()
    parts: list[Part] = [input_map if input_map is not None else AffineTransform(-1.0, 2.0)]
    parts.append(Squeeze(patch_size))
    masks = _masks_of_pixels(shape)
    for i in range(couplings):
        affine = AffineMap(SigmoidScale(offset=0.0, factor=LARGEST_SCALE))
        if i % (channel_couplings + 1) < channel_couplings:
            parts.append(ChannelPermutation(_random_order(shape[0], seed=i)))
            parts.append(assembly.coupling(ChannelHalves(shape), affine, network))
            continue
        mask = next(masks)
        are_equal = mask.kept_shape == mask.changed_shape
        couple = assembly.coupling if are_equal else assembly.coupling_on_image
        parts.append(couple(mask, affine, network))
    return [*parts, Flatten(shape), *assembly.base(shape.numel())]


def _patches(event_shape: Sequence[int], patch_size: int) -> torch.Size:
    """The shape of images whose pixels are patches.

    Raises:
        ValueError: unless the patches fill the image, and there are at least 2x2.
    """
    shape = tuple(event_shape)
    if (
        len(shape) != 3
        or patch_size < 1
        or any(side % patch_size or side < 2 * patch_size for side in shape[1:])
    ):
        raise ValueError(
            "event_shape, patch_size: expected (C, H, W) and a divisor of H and W with at least "
            f"2x2 patches, got {shape} and {patch_size}."
        )
    channels, height, width = shape
    return torch.Size((channels * patch_size**2, height // patch_size, width // patch_size))


def _masks_of_pixels(shape: torch.Size) -> Iterator[Mask]:
    """Checkerboards, columns and rows of both parities, again and again."""
    kinds: list[type[Checkerboard | Columns | Rows]] = [Checkerboard, Columns, Rows]
    return itertools.cycle([kind(shape, parity) for kind in kinds for parity in (0, 1)])


def _random_order(channels: int, seed: int) -> list[int]:
    """A random order of channels, the same for every flow."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(channels, generator=generator, device="cpu").tolist()
