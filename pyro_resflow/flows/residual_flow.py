"""Residual Flow for images (Chen et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.distributions import Transform

from ..transforms import ActNorm, Compose, Flatten, Logit, Multiscale, Residual, Squeeze
from ..transforms.residual import LogDet, Solve
from .image_flow import ImageFlow, checked_scales
from .recipes import ConvBlock, MLPBlock, NetworkRecipe


class ResidualFlow(ImageFlow):
    """Residual Flow for images: logit, then residual blocks with ActNorm at several scales.

    From image to noise: logit, ActNorm, per scale (block, ActNorm) times its number of blocks,
    a squeeze between scales, and fully connected blocks at the end.

    Args:
        event_shape: ``(C, H, W)``.
        blocks: number of residual blocks at each scale.
        network: recipe of the blocks' networks: :class:`ConvBlock` (default),
            :class:`DenseNetBlock`, or a function of the event shape.
        end_blocks: number of fully connected blocks at the end.
        end_network: recipe of their networks, on vectors.
        alpha: margin of the logit, see :class:`pyro_resflow.transforms.Logit`.
        squeeze_first: squeeze before the first scale.
        factor_out: factor out half of the channels after each scale but the last.
        logdet: estimator for every block; default: see :class:`pyro_resflow.transforms.Residual`.
        solver: solver for every block; default ``Anderson()``.

    Raises:
        ValueError: if the image size does not divide into the scales.

    Reference:
        Chen et al., Residual Flows for Invertible Generative Modeling, 2019, appendix E.

    Example:
        >>> import torch
        >>> from pyro_resflow.flows import ConvBlock, ResidualFlow
        >>> flow = ResidualFlow((1, 8, 8), blocks=(2, 2), network=ConvBlock(16))
        >>> d = flow.distribution()
        >>> d.log_prob(torch.rand(5, 1, 8, 8)).shape
        torch.Size([5])
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
        alpha: float = 0.05,
        squeeze_first: bool = False,
        factor_out: bool = False,
        logdet: LogDet | None = None,
        solver: Solve | None = None,
    ) -> None:
        shape = checked_scales(
            event_shape, len(blocks), squeeze_first=squeeze_first, name="blocks"
        )
        if min(blocks) < 0 or end_blocks < 0:
            raise ValueError(
                f"blocks, end_blocks: expected no negative number, got {tuple(blocks)} and "
                f"{end_blocks}."
            )
        network = network if network is not None else ConvBlock()
        end_network = end_network if end_network is not None else MLPBlock()
        parts: list[Transform] = [Logit(alpha, event_dim=3)]
        if squeeze_first:
            parts.append(Squeeze())
            shape = parts[-1].forward_shape(shape)
        parts.append(ActNorm(shape[0], event_dim=3))
        entry_shape = shape
        levels: list[Transform] = []
        for scale, number in enumerate(blocks):
            level: list[Transform] = []
            for i in range(number):
                net = network(shape, preactivation=scale + i > 0)
                level += [Residual(net, event_dim=3, logdet=logdet, solver=solver)]
                level += [ActNorm(shape[0], event_dim=3)]
            if scale < len(blocks) - 1:
                level.append(Squeeze())
                shape = level[-1].forward_shape(shape)
                if factor_out:
                    shape = torch.Size((shape[0] - shape[0] // 2, *shape[1:]))
            else:
                level.append(Flatten(shape))
                for _ in range(end_blocks):
                    net = end_network(torch.Size((shape.numel(),)), preactivation=True)
                    level += [Residual(net, logdet=logdet, solver=solver), ActNorm(shape.numel())]
            levels.append(Compose(level))
        if factor_out:
            parts.append(Multiscale(levels, entry_shape))
        else:
            parts += levels
        super().__init__(parts, event_shape)
