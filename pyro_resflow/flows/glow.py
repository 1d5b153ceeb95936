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
    InvertibleConv1x1,
    SigmoidScale,
    Squeeze,
)
from ..transforms.couplings.masks import first_half
from .assembly import UNCONDITIONAL, Assembly, ConditionalAssembly, Part
from .conditional import ConditionalImageFlow
from .contexts import EMBEDDING_DIM, context_of
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
        input_map: transform from pixels to the real line in front; none by default. For instance
            :class:`pyro_resflow.transforms.MarginalGaussianization`, which reads it off the data,
            or :class:`pyro_resflow.transforms.Logit`.

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
        input_map: Transform | None = None,
    ) -> None:
        parts = glow_parts(UNCONDITIONAL, event_shape, steps, network=network, input_map=input_map)
        super().__init__(parts, event_shape)


class ConditionalGlow(ConditionalImageFlow):
    """Glow for images of a class, or given a vector.

    Each conditioner also receives the context, and the normal base distribution has its own means
    and standard deviations for each context.

    Args:
        event_shape: ``(C, H, W)``.
        steps: number of steps at each level.
        num_classes: number of classes, if contexts are integer labels.
        context_dim: size of the contexts, if they are vectors.
        embedding_dim: size of the vector that is learned for each label.
        network: recipe of the conditioners; default ``ConvConditioner(channels=512)``.
        input_map: transform from pixels to the real line in front; none by default. For instance
            :class:`pyro_resflow.transforms.MarginalGaussianization`, which reads it off the data,
            or :class:`pyro_resflow.transforms.Logit`.

    Raises:
        ValueError: unless exactly one of ``num_classes`` and ``context_dim`` is given; for other
            causes see :class:`Glow`.

    Example:
        >>> import torch
        >>> from pyro_resflow.flows import ConditionalGlow
        >>> from pyro_resflow.nn import ConvConditioner
        >>> network = ConvConditioner(8)
        >>> flow = ConditionalGlow((1, 8, 8), (2, 2), num_classes=10, network=network)
        >>> labels = torch.randint(0, 10, (16,))
        >>> flow.condition(labels).distribution().log_prob(torch.rand(16, 1, 8, 8)).shape
        torch.Size([16])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        steps: Sequence[int] = (32, 32, 32),
        *,
        num_classes: int | None = None,
        context_dim: int | None = None,
        embedding_dim: int = EMBEDDING_DIM,
        network: Conditioner | None = None,
        input_map: Transform | None = None,
    ) -> None:
        context = context_of(num_classes, context_dim, embedding_dim)
        assembly = ConditionalAssembly(context.size)
        parts = glow_parts(assembly, event_shape, steps, network=network, input_map=input_map)
        super().__init__(parts, event_shape, context)


def glow_parts(
    assembly: Assembly,
    event_shape: Sequence[int],
    steps: Sequence[int],
    *,
    network: Conditioner | None = None,
    input_map: Transform | None = None,
) -> list[Part]:
    """The parts of a Glow, from images to noise.

    Args:
        assembly: builds the parts that may depend on a context.
        event_shape: see :class:`Glow`.
        steps: see :class:`Glow`.
        network: see :class:`Glow`.
        input_map: see :class:`Glow`.
    """
    shape = checked_scales(event_shape, len(steps), squeeze_first=True, name="steps")
    if min(steps) < 1:
        raise ValueError(f"steps: expected at least one at each level, got {tuple(steps)}.")
    network = network if network is not None else ConvConditioner()
    levels: list[Part] = []
    channels, *size = shape
    for number in steps:
        channels, size = 4 * channels, [side // 2 for side in size]
        level: list[Part] = [Squeeze()]
        for _ in range(number):
            level += _step(assembly, (channels, *size), network)
        levels.append(assembly.compose(level))
        channels = first_half(channels)
    levels[-1] = assembly.compose([levels[-1], ActNorm(2 * channels, event_dim=3)])
    multiscale = assembly.multiscale(levels, event_shape, _one_convolution)
    front = [input_map] if input_map is not None else []
    return [*front, multiscale, *assembly.base(shape.numel())]


def _step(assembly: Assembly, shape: Sequence[int], network: Conditioner) -> list[Part]:
    coupling = assembly.coupling(ChannelHalves(shape), AffineMap(SigmoidScale()), network)
    return [ActNorm(shape[0], event_dim=3), InvertibleConv1x1(shape[0]), coupling]


def _one_convolution(
    in_shape: Sequence[int], out_channels: int, context_channels: int = 0
) -> ZeroConv2d:
    return ZeroConv2d(in_shape[0] + context_channels, out_channels)
