"""Flow++ for images (Ho et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.distributions import Transform

from ..arguments import checked
from ..transforms import (
    ChannelHalves,
    Checkerboard,
    CouplingStep,
    Flatten,
    Mask,
    Squeeze,
)
from .assembly import UNCONDITIONAL, Assembly, ConditionalAssembly, Part
from .conditional import ConditionalImageFlow
from .contexts import EMBEDDING_DIM, context_of
from .image_flow import PUBLISHED_ALPHA, ImageFlow, checked_scales, input_maps


class FlowPlusPlus(ImageFlow):
    """Flow++ for images: a logit, then logistic-mixture couplings with self-attention.

    From image to noise, a logit comes first. Each scale then has channel couplings followed by
    checkerboard couplings, with a squeeze between scales and without factoring out. Per-pixel
    normalisation and 1x1 convolutions precede each coupling, see
    :class:`pyro_resflow.transforms.CouplingStep`. The flow is meant for images dequantized by
    :class:`pyro_resflow.transforms.VariationalDequantization`.

    The defaults are the authors' for CIFAR-10, except that dropout is 0 instead of 0.2. The
    authors' ImageNet models have ``mix_channels=False`` and ``last_activation=True``. At 32x32
    they have ``couplings=((0, 7), (3, 3))``, 20 blocks of 128 channels and
    ``convolution=WeightNormConv2d``. At 64x64 they have ``squeeze_first=True``,
    ``couplings=((0, 4), (2, 2), (2, 2))``, 16 blocks of 96 channels and 4 components.

    Args:
        event_shape: ``(C, H, W)``.
        couplings: for each scale, the numbers of channel and of checkerboard couplings.
        step: recipe of each coupling together with its normalisation and 1x1 convolutions.
        mask: builds a checkerboard coupling's mask from an event shape and a parity:
            :class:`pyro_resflow.transforms.Checkerboard` (default), or
            :class:`pyro_resflow.transforms.Columns` as in the authors' code.
        alpha: margin of the logit, see :class:`pyro_resflow.transforms.Logit`.
        input_map: transform from pixels to the real line, in place of the logit: for instance
            :class:`pyro_resflow.transforms.MarginalGaussianization`, which reads it off the data.
        squeeze_first: whether to squeeze before the first scale, as for ImageNet 64x64.

    Raises:
        ValueError: if the image size is not divisible by the squeezes, if an entry of
            ``couplings`` is not a pair or has a negative number, or if both an alpha and an input
            map are given.

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
        alpha: float = PUBLISHED_ALPHA,
        input_map: Transform | None = None,
        squeeze_first: bool = False,
    ) -> None:
        parts = flow_plus_plus_parts(
            UNCONDITIONAL,
            event_shape,
            couplings,
            step=step,
            mask=mask,
            alpha=alpha,
            input_map=input_map,
            squeeze_first=squeeze_first,
        )
        super().__init__(parts, event_shape)


class ConditionalFlowPlusPlus(ConditionalImageFlow):
    """Flow++ for images of a class, or given a vector.

    Each gated convolution of the conditioners also receives the context, and the normal base
    distribution has its own means and standard deviations for each context.

    Args:
        event_shape: ``(C, H, W)``.
        couplings: for each scale, the numbers of channel and of checkerboard couplings.
        num_classes: number of classes, if contexts are integer labels.
        context_dim: size of the contexts, if they are vectors.
        embedding_dim: size of the vector that is learned for each label.
        settings: further arguments of :class:`FlowPlusPlus`.

    Raises:
        ValueError: unless exactly one of ``num_classes`` and ``context_dim`` is given; for other
            causes see :class:`FlowPlusPlus`.

    Example:
        >>> import torch
        >>> from pyro_resflow.flows import ConditionalFlowPlusPlus
        >>> from pyro_resflow.nn import GatedAttentionConditioner
        >>> from pyro_resflow.transforms import CouplingStep
        >>> step = CouplingStep(GatedAttentionConditioner(channels=8, blocks=1))
        >>> flow = ConditionalFlowPlusPlus((1, 8, 8), ((0, 2), (2, 2)), context_dim=3, step=step)
        >>> contexts = torch.randn(16, 3)
        >>> flow.condition(contexts).distribution().log_prob(torch.rand(16, 1, 8, 8)).shape
        torch.Size([16])
    """

    @checked(FlowPlusPlus)
    def __init__(
        self,
        event_shape: Sequence[int],
        couplings: Sequence[tuple[int, int]] = ((0, 4), (2, 3)),
        *,
        num_classes: int | None = None,
        context_dim: int | None = None,
        embedding_dim: int = EMBEDDING_DIM,
        **settings: Any,
    ) -> None:
        context = context_of(num_classes, context_dim, embedding_dim)
        assembly = ConditionalAssembly(context.size)
        parts = flow_plus_plus_parts(assembly, event_shape, couplings, **settings)
        super().__init__(parts, event_shape, context)


def flow_plus_plus_parts(
    assembly: Assembly,
    event_shape: Sequence[int],
    couplings: Sequence[tuple[int, int]],
    *,
    step: CouplingStep | None = None,
    mask: Callable[[Sequence[int], int], Mask] = Checkerboard,
    alpha: float = PUBLISHED_ALPHA,
    input_map: Transform | None = None,
    squeeze_first: bool = False,
) -> list[Part]:
    """The parts of a Flow++, from images to noise.

    Args:
        assembly: builds the parts that may depend on a context.
        event_shape: see :class:`FlowPlusPlus`.
        couplings: see :class:`FlowPlusPlus`.
        step: see :class:`FlowPlusPlus`.
        mask: see :class:`FlowPlusPlus`.
        alpha: see :class:`FlowPlusPlus`.
        input_map: see :class:`FlowPlusPlus`.
        squeeze_first: see :class:`FlowPlusPlus`.
    """
    shape = checked_scales(
        event_shape, len(couplings), squeeze_first=squeeze_first, name="couplings"
    )
    if any(len(scale) != 2 or min(scale) < 0 for scale in couplings):
        raise ValueError(
            "couplings: expected a pair of non-negative integers for each scale, got "
            f"{tuple(couplings)}."
        )
    step = step if step is not None else CouplingStep()
    parts: list[Part] = input_maps(input_map, alpha)
    for scale, (by_channel, by_pixel) in enumerate(couplings):
        if scale or squeeze_first:
            parts.append(Squeeze())
            shape = parts[-1].forward_shape(shape)
        masks: list[Mask] = [ChannelHalves(shape, swap=bool(i % 2)) for i in range(by_channel)]
        masks += [mask(shape, i % 2) for i in range(by_pixel)]
        parts += [assembly.step(step, each) for each in masks]
    return [*parts, Flatten(shape), *assembly.base(shape.numel())]
