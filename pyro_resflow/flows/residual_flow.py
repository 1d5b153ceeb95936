"""Residual Flow for images (Chen et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch.distributions import Transform

from ..arguments import checked
from ..logdet import LogDetEstimator
from ..solvers import FixedPointSolver
from ..transforms import ActNorm, Flatten, Residual, Squeeze
from ..transforms.contractive.contraction_transform import ContractionTransform
from .assembly import UNCONDITIONAL, Assembly, ConditionalAssembly, Part
from .conditional import ConditionalImageFlow
from .contexts import EMBEDDING_DIM, context_of
from .image_flow import PUBLISHED_ALPHA, ImageFlow, checked_scales, input_maps
from .recipes import ConvBlock, MLPBlock, NetworkRecipe
from .scales import joined, steps_by_scale


class ResidualFlow(ImageFlow):
    """Residual Flow for images: a logit, then residual blocks with ActNorm at several scales.

    From image to noise, a logit and an ActNorm come first. Each scale has pairs of a residual
    block and an ActNorm, with a squeeze between scales. Fully connected blocks come last. Other
    arguments give two related published flows:

    - i-DenseNet: ``network=DenseNetBlock(), end_network=DenseNetBlock(growth=32, stem=64)``;
    - monotone flow: the same networks with ``activation=CPila``, and ``block=Monotone``.

    Args:
        event_shape: ``(C, H, W)``.
        blocks: number of residual blocks at each scale.
        network: recipe of the blocks' networks: :class:`ConvBlock` (default),
            :class:`DenseNetBlock`, or any :class:`NetworkRecipe`.
        end_blocks: number of fully connected blocks at the end.
        end_network: recipe of the fully connected blocks' networks; default :class:`MLPBlock`.
        block: class of the transform of each network: :class:`pyro_resflow.transforms.Residual`
            (default) or :class:`pyro_resflow.transforms.Monotone`.
        alpha: margin of the logit, see :class:`pyro_resflow.transforms.Logit`. With ``None``, as
            in hybrid models, there is no logit, and the ActNorm alone standardises the images.
        input_map: transform from pixels to the real line, in place of the logit: for instance
            :class:`pyro_resflow.transforms.MarginalGaussianization`, which reads it off the data.
        squeeze_first: whether to squeeze before the first scale.
        factor_out: whether to factor out half of the channels after each scale but the last.
        norms_of_pixels: whether each ActNorm of images has a scale and shift for every pixel, and
            not only for every channel.
        logdet: estimator for every block; for the default see
            :class:`pyro_resflow.transforms.Residual`.
        solver: solver for every block; default ``Anderson()``.

    Raises:
        ValueError: if the image size is not divisible by the squeezes, for a negative number of
            blocks, or if both an alpha and an input map are given.

    Reference:
        Chen et al., Residual Flows for Invertible Generative Modeling, 2019, appendix E.
        Perugachi-Diaz, Tomczak and Bhulai, Invertible DenseNets with Concatenated LipSwish, 2021.
        Ahn, Kim, Hong and Kim, Invertible Monotone Operators for Normalizing Flows, 2022.

    Example:
        >>> import torch
        >>> from pyro_resflow.flows import ConvBlock, ResidualFlow
        >>> flow = ResidualFlow((1, 8, 8), blocks=(2, 2), network=ConvBlock(16))
        >>> d = flow.distribution()
        >>> d.log_prob(torch.rand(16, 1, 8, 8)).shape
        torch.Size([16])
        >>> d.sample((3,)).shape
        torch.Size([3, 1, 8, 8])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        blocks: Sequence[int] = (16, 16, 16),
        *,
        network: NetworkRecipe | None = None,
        end_blocks: int = 4,
        end_network: NetworkRecipe | None = None,
        block: type[ContractionTransform] = Residual,
        alpha: float | None = PUBLISHED_ALPHA,
        input_map: Transform | None = None,
        squeeze_first: bool = False,
        factor_out: bool = False,
        norms_of_pixels: bool = False,
        logdet: LogDetEstimator | None = None,
        solver: FixedPointSolver | None = None,
    ) -> None:
        parts = residual_flow_parts(
            UNCONDITIONAL,
            event_shape,
            blocks,
            network=network,
            end_blocks=end_blocks,
            end_network=end_network,
            block=block,
            alpha=alpha,
            input_map=input_map,
            squeeze_first=squeeze_first,
            factor_out=factor_out,
            norms_of_pixels=norms_of_pixels,
            logdet=logdet,
            solver=solver,
        )
        super().__init__(parts, event_shape)


class ConditionalResidualFlow(ConditionalImageFlow):
    """Residual Flow for images of a class, or given a vector.

    In each block, a network of the context shifts every layer, so that the block stays a
    contraction of the image for every context. The normal base distribution has its own means and
    standard deviations for each context.

    Args:
        event_shape: ``(C, H, W)``.
        blocks: number of residual blocks at each scale.
        num_classes: number of classes, if contexts are integer labels.
        context_dim: size of the contexts, if they are vectors.
        embedding_dim: size of the vector that is learned for each label.
        settings: further arguments of :class:`ResidualFlow`; ``block`` has to be ``Residual``.

    Raises:
        ValueError: unless exactly one of ``num_classes`` and ``context_dim`` is given; for other
            causes see :class:`ResidualFlow`.

    Example:
        >>> import torch
        >>> from pyro_resflow.flows import ConditionalResidualFlow, ConvBlock
        >>> network = ConvBlock(16)
        >>> flow = ConditionalResidualFlow((1, 8, 8), (2, 2), num_classes=10, network=network)
        >>> labels = torch.randint(0, 10, (16,))
        >>> flow.condition(labels).distribution().log_prob(torch.rand(16, 1, 8, 8)).shape
        torch.Size([16])
        >>> flow.condition(torch.tensor(3)).distribution().sample((5,)).shape
        torch.Size([5, 1, 8, 8])
    """

    @checked(ResidualFlow)
    def __init__(
        self,
        event_shape: Sequence[int],
        blocks: Sequence[int] = (16, 16, 16),
        *,
        num_classes: int | None = None,
        context_dim: int | None = None,
        embedding_dim: int = EMBEDDING_DIM,
        **settings: Any,
    ) -> None:
        context = context_of(num_classes, context_dim, embedding_dim)
        assembly = ConditionalAssembly(context.size)
        parts = residual_flow_parts(assembly, event_shape, blocks, **settings)
        super().__init__(parts, event_shape, context)


def residual_flow_parts(
    assembly: Assembly,
    event_shape: Sequence[int],
    blocks: Sequence[int],
    *,
    network: NetworkRecipe | None = None,
    end_blocks: int = 4,
    end_network: NetworkRecipe | None = None,
    block: type[ContractionTransform] = Residual,
    alpha: float | None = PUBLISHED_ALPHA,
    input_map: Transform | None = None,
    squeeze_first: bool = False,
    factor_out: bool = False,
    norms_of_pixels: bool = False,
    logdet: LogDetEstimator | None = None,
    solver: FixedPointSolver | None = None,
) -> list[Part]:
    """The parts of a Residual Flow, from images to noise.

    Args:
        assembly: builds the parts that may depend on a context.
        event_shape: see :class:`ResidualFlow`.
        blocks: see :class:`ResidualFlow`.
        network: see :class:`ResidualFlow`.
        end_blocks: see :class:`ResidualFlow`.
        end_network: see :class:`ResidualFlow`.
        block: see :class:`ResidualFlow`.
        alpha: see :class:`ResidualFlow`.
        input_map: see :class:`ResidualFlow`.
        squeeze_first: see :class:`ResidualFlow`.
        factor_out: see :class:`ResidualFlow`.
        norms_of_pixels: see :class:`ResidualFlow`.
        logdet: see :class:`ResidualFlow`.
        solver: see :class:`ResidualFlow`.
    """
    shape = checked_scales(event_shape, len(blocks), squeeze_first)
    if end_blocks < 0:
        raise ValueError(f"end_blocks: expected at least 0, got {end_blocks}.")
    network = network if network is not None else ConvBlock()
    end_network = end_network if end_network is not None else MLPBlock()
    make = partial(assembly.contraction, block, logdet=logdet, solver=solver)

    def norm(shape: torch.Size) -> Part:
        return ActNorm(shape if norms_of_pixels else shape[0], event_dim=3)

    def step(shape: torch.Size, scale: int, first: bool) -> list[Part]:
        net = network(shape, preactivation=not first)
        return [make(net, event_dim=3), norm(shape)]

    parts: list[Part] = input_maps(input_map, alpha)
    if squeeze_first:
        parts.append(Squeeze())
        shape = parts[-1].forward_shape(shape)
    parts.append(norm(shape))
    scales, last_shape = steps_by_scale(shape, blocks, step, factor_out=factor_out)
    scales[-1].append(Flatten(last_shape))
    size = last_shape.numel()
    for _ in range(end_blocks):
        net = end_network(torch.Size((size,)), preactivation=True)
        scales[-1] += [make(net), ActNorm(size)]
    parts += joined(scales, shape, factor_out=factor_out, assembly=assembly)
    return [*parts, *assembly.base(torch.Size(event_shape).numel())]
