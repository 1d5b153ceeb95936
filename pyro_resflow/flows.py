"""Ready-made flows: short assemblies of the public parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyro.distributions as dist
import torch
from pyro.distributions import ConditionalTransformModule
from torch import Tensor
from torch.distributions import Transform

from .nn import (
    Activation,
    Chain,
    CLipSwish,
    LipschitzConvNet,
    LipschitzDenseNet,
    LipschitzMLP,
    LipSwish,
    SpectralNorm,
)
from .transforms import (
    ActNorm,
    Compose,
    ConditionalAffine,
    ConditionalCompose,
    ConditionalInverse,
    Flatten,
    Inverse,
    Logit,
    Multiscale,
    Residual,
    Squeeze,
    conditional_residual,
    residual,
)
from .transforms.base import check_event_shape
from .transforms.residual import Fast, LogDet, Solve, checked_fast


def residual_flow(
    input_dim: int,
    blocks: int = 4,
    hidden_dims: Sequence[int] | None = None,
    *,
    fast: Fast = "sampling",
    logdet: LogDet | None = None,
    solver: Solve | None = None,
    **network: Any,
) -> Compose | Inverse:
    """Residual blocks of vectors with an ActNorm after each.

    Args:
        input_dim: size of the vectors.
        blocks: number of residual blocks.
        hidden_dims: widths of the hidden layers of each; default ``[64, 64]``.
        fast: the direction without iteration. ``"sampling"`` for guides, where the ActNorms start
            as the identity; ``"density"`` for fitting data, where the first batch that is scored
            sets them.
        logdet: see :class:`pyro_resflow.transforms.Residual`.
        solver: see :class:`pyro_resflow.transforms.Residual`.
        network: further arguments of :class:`pyro_resflow.nn.LipschitzMLP`.

    Raises:
        ValueError: for fewer than one block or an unknown ``fast``.

    Example:
        >>> from functools import partial
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoNormalizingFlow
        >>> from pyro_resflow import residual_flow
        >>> def model():
        ...     pyro.sample("z", dist.Normal(0.0, 1.0).expand([5]).to_event(1))
        >>> guide = AutoNormalizingFlow(model, partial(residual_flow, blocks=2))
        >>> sorted(guide())
        ['z']
    """
    starts_from_noise = checked_fast(fast) == "sampling"
    parts: list[Transform] = [] if starts_from_noise else [ActNorm(input_dim)]
    for _ in range(checked_blocks(blocks)):
        parts.append(residual(input_dim, hidden_dims, logdet=logdet, solver=solver, **network))
        parts.append(ActNorm(input_dim, initialized=starts_from_noise))
    flow = Compose(parts)
    return flow if starts_from_noise else Inverse(flow)


def conditional_residual_flow(
    input_dim: int,
    context_dim: int,
    blocks: int = 4,
    hidden_dims: Sequence[int] | None = None,
    *,
    context_hidden_dims: Sequence[int] = (64,),
    fast: Fast = "sampling",
    logdet: LogDet | None = None,
    solver: Solve | None = None,
    **network: Any,
) -> ConditionalCompose | ConditionalInverse:
    """Conditional residual blocks of vectors, each followed by an affine map and an ActNorm.

    The context shifts every layer of a block, and through
    :class:`pyro_resflow.transforms.ConditionalAffine` it scales and shifts what leaves the block:
    a contraction alone can stretch its input by no more than two, whatever the context.

    Args:
        input_dim: size of the vectors.
        context_dim: size of the context.
        blocks: number of residual blocks.
        hidden_dims: widths of the hidden layers of each; default ``[64, 64]``.
        context_hidden_dims: widths of the hidden layers of the networks of the context, at least
            one.
        fast: see :func:`residual_flow`.
        logdet: see :class:`pyro_resflow.transforms.Residual`.
        solver: see :class:`pyro_resflow.transforms.Residual`.
        network: further arguments of :class:`pyro_resflow.nn.ConditionalLipschitzMLP`.

    Raises:
        ValueError: for fewer than one block or an unknown ``fast``.

    Example:
        >>> import pyro.distributions as dist
        >>> import torch
        >>> from pyro_resflow import conditional_residual_flow
        >>> flow = conditional_residual_flow(2, context_dim=3, fast="density")
        >>> base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        >>> conditional = dist.ConditionalTransformedDistribution(base, [flow])
        >>> conditional.condition(torch.randn(7, 3)).log_prob(torch.randn(7, 2)).shape
        torch.Size([7])
    """
    starts_from_noise = checked_fast(fast) == "sampling"
    parts: list[Transform | ConditionalTransformModule] = []
    if not starts_from_noise:
        parts.append(ActNorm(input_dim))
    for _ in range(checked_blocks(blocks)):
        block = conditional_residual(
            input_dim,
            context_dim,
            hidden_dims,
            logdet=logdet,
            solver=solver,
            context_hidden_dims=context_hidden_dims,
            **network,
        )
        parts.append(block)
        parts.append(ConditionalAffine(input_dim, context_dim, context_hidden_dims))
        parts.append(ActNorm(input_dim, initialized=starts_from_noise))
    flow = ConditionalCompose(parts)
    return flow if starts_from_noise else ConditionalInverse(flow)


def checked_blocks(blocks: int) -> int:
    """``blocks``, checked.

    Raises:
        ValueError: if it is below 1.
    """
    if blocks < 1:
        raise ValueError(f"blocks: expected at least one residual block, got {blocks}.")
    return blocks


class NetworkRecipe(Protocol):
    """Builds the network of one residual block."""

    def __call__(self, event_shape: torch.Size, *, preactivation: bool) -> Any:
        """The network for events of this shape, with an activation in front if asked."""


@dataclass(frozen=True)
class ConvBlock:
    """Recipe of the published block: convolutions 3x3, 1x1, 3x3 with an activation before each.

    Args:
        hidden_channels: width of both hidden layers.
        kernel_sizes: one size per convolution.
        activation: makes one activation.
        coefficient: Lipschitz constant of each convolution.
    """

    hidden_channels: int = 512
    kernel_sizes: Sequence[int] = (3, 1, 3)
    activation: Callable[[], Activation] = LipSwish
    coefficient: float = 0.98

    def __call__(self, event_shape: torch.Size, *, preactivation: bool) -> Chain:
        return LipschitzConvNet(
            event_shape,
            [self.hidden_channels] * (len(self.kernel_sizes) - 1),
            kernel_sizes=self.kernel_sizes,
            activation=self.activation,
            norm=SpectralNorm(self.coefficient),
            preactivation=preactivation,
        )


@dataclass(frozen=True)
class DenseNetBlock:
    """Recipe of the i-DenseNet block: densely connected layers, no activation in front.

    Args:
        depth: number of dense layers.
        growth: features that each adds.
        activation: makes one activation from the feature dimension.
        coefficient: Lipschitz constant of each linear layer.
    """

    depth: int = 3
    growth: int = 172
    activation: Callable[[int], Activation] = CLipSwish
    coefficient: float = 0.98

    def __call__(self, event_shape: torch.Size, *, preactivation: bool) -> Chain:
        return LipschitzDenseNet(
            event_shape,
            depth=self.depth,
            growth=self.growth,
            activation=self.activation,
            norm=SpectralNorm(self.coefficient),
        )


@dataclass(frozen=True)
class MLPBlock:
    """Recipe of a fully connected block, on vectors.

    Args:
        hidden_dims: widths of the hidden layers.
        activation: makes one activation.
        coefficient: Lipschitz constant of each linear layer.
    """

    hidden_dims: Sequence[int] = (128, 128)
    activation: Callable[[], Activation] = LipSwish
    coefficient: float = 0.98

    def __call__(self, event_shape: torch.Size, *, preactivation: bool) -> Chain:
        return LipschitzMLP(
            event_shape.numel(),
            self.hidden_dims,
            activation=self.activation,
            norm=SpectralNorm(self.coefficient),
            preactivation=preactivation,
        )


class Encoder(Compose):
    """Transforms of images to vectors, one after the other, that check what they are given.

    Args:
        parts: see :class:`pyro_resflow.transforms.Compose`.
        event_shape: ``(C, H, W)``.
    """

    def __init__(self, parts: Sequence[Transform], event_shape: Sequence[int]) -> None:
        super().__init__(parts)
        self.event_shape = torch.Size(event_shape)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_event_shape("images", x, self.event_shape)
        return super().call_and_ladj(x)

    def _call(self, x: Tensor) -> Tensor:
        check_event_shape("images", x, self.event_shape)
        return super()._call(x)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        check_event_shape("noise", y, (self.event_shape.numel(),))
        return super().inverse_and_ladj(y)

    def _inverse(self, y: Tensor) -> Tensor:
        check_event_shape("noise", y, (self.event_shape.numel(),))
        return super()._inverse(y)


class ImageFlow(Inverse):
    """A flow from noise vectors to images on [0, 1]: an encoder of images, run backwards.

    The density of an image takes one pass of the encoder; sampling inverts it.

    Args:
        parts: the encoder: transforms of images ``(C, H, W)`` to vectors of the same size.
        event_shape: ``(C, H, W)``.
    """

    def __init__(self, parts: Sequence[Transform], event_shape: Sequence[int]) -> None:
        super().__init__(Encoder(parts, event_shape))
        self.event_shape = torch.Size(event_shape)

    @property
    def latent_dim(self) -> int:
        """Size D of the noise vector."""
        return self.event_shape.numel()

    def distribution(self) -> dist.TransformedDistribution:
        """The distribution of images: this flow on standard normal noise."""
        like = next(self.parameters())
        zeros = torch.zeros(self.latent_dim, dtype=like.dtype, device=like.device)
        base = dist.Normal(zeros, torch.ones_like(zeros), validate_args=False).to_event(1)
        return dist.TransformedDistribution(base, [self])

    def forward_shape(self, shape: tuple[int, ...]) -> torch.Size:
        return torch.Size((*shape[:-1], *self.event_shape))

    def inverse_shape(self, shape: tuple[int, ...]) -> torch.Size:
        return torch.Size((*shape[: len(shape) - 3], self.latent_dim))


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
        shape = checked_scales(event_shape, len(blocks), squeeze_first)
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


def checked_scales(event_shape: Sequence[int], scales: int, squeeze_first: bool) -> torch.Size:
    """``event_shape`` as a size, checked against the number of squeezes.

    Raises:
        ValueError: if it is no image shape, there is no scale, or a squeeze does not divide it.
    """
    squeezes = scales - 1 + squeeze_first
    if scales < 1:
        raise ValueError("blocks: expected the number of blocks of at least one scale, got none.")
    if len(event_shape) != 3 or any(size % 2**squeezes for size in event_shape[1:]):
        raise ValueError(
            f"event_shape: expected (C, H, W) with H and W divisible by {2**squeezes} for "
            f"{squeezes} squeezes, got {tuple(event_shape)}."
        )
    return torch.Size(event_shape)
