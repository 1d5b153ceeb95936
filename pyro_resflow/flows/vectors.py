"""Residual flows of vectors, unconditional and conditional."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyro.distributions import ConditionalTransformModule
from torch import nn
from torch.distributions import Transform

from ..arguments import checked
from ..logdet import LogDetEstimator
from ..nn import ConditionalLipschitzMLP, LipschitzMLP
from ..solvers import FixedPointSolver
from ..transforms import (
    ActNorm,
    Compose,
    ConditionalAffine,
    ConditionalCompose,
    ConditionalInverse,
    Inverse,
    conditional_residual,
    residual,
)
from ..transforms.contractive.residual import Fast, checked_fast


@checked(LipschitzMLP, chosen_by="network")
def residual_flow(
    input_dim: int,
    blocks: int = 4,
    hidden_dims: Sequence[int] | None = None,
    *,
    fast: Fast = "sampling",
    logdet: LogDetEstimator | None = None,
    solver: FixedPointSolver | None = None,
    network: type[nn.Module] = LipschitzMLP,
    **options: Any,
) -> Compose | Inverse:
    """A flow of residual blocks of vectors, each followed by an ActNorm.

    Args:
        input_dim: size of the vectors.
        blocks: number of residual blocks.
        hidden_dims: widths of the hidden layers of each block; default ``[64, 64]``.
        fast: the direction that needs no iteration. ``"sampling"`` suits guides, and its ActNorms
            start as the identity. ``"density"`` suits density estimation, and the first batch that
            is scored initialises its ActNorms, see
            :func:`pyro_resflow.transforms.initialize`.
        logdet: see :class:`pyro_resflow.transforms.Residual`.
        solver: see :class:`pyro_resflow.transforms.Residual`.
        network: the class of each block's contraction, see
            :func:`pyro_resflow.transforms.residual`.
        options: further arguments of that class.

    Returns:
        The transform from noise to data.

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
        block = residual(
            input_dim, hidden_dims, logdet=logdet, solver=solver, network=network, **options
        )
        parts.append(block)
        parts.append(ActNorm(input_dim, initialized=starts_from_noise))
    flow = Compose(parts)
    return flow if starts_from_noise else Inverse(flow)


@checked(ConditionalLipschitzMLP, chosen_by="network")
def conditional_residual_flow(
    input_dim: int,
    context_dim: int,
    blocks: int = 4,
    hidden_dims: Sequence[int] | None = None,
    *,
    context_hidden_dims: Sequence[int] = (64,),
    fast: Fast = "sampling",
    logdet: LogDetEstimator | None = None,
    solver: FixedPointSolver | None = None,
    network: type[nn.Module] = ConditionalLipschitzMLP,
    **options: Any,
) -> ConditionalCompose | ConditionalInverse:
    """A flow of conditional residual blocks, each followed by an affine map and an ActNorm.

    The context shifts every layer of a block, and a
    :class:`pyro_resflow.transforms.ConditionalAffine` scales and shifts the block's output by the
    context. A block alone could not adapt its scale to the context, since x + g(x) with a
    contraction g stretches its input at most by a factor of two.

    Args:
        input_dim: size of the vectors.
        context_dim: size of the context.
        blocks: number of residual blocks.
        hidden_dims: widths of the hidden layers of each block; default ``[64, 64]``.
        context_hidden_dims: widths of the hidden layers of the networks of the context.
        fast: see :func:`residual_flow`.
        logdet: see :class:`pyro_resflow.transforms.Residual`.
        solver: see :class:`pyro_resflow.transforms.Residual`.
        network: the class of each block's contraction, see
            :func:`pyro_resflow.transforms.conditional_residual`.
        options: further arguments of that class.

    Returns:
        The conditional transform from noise to data.

    Raises:
        ValueError: for fewer than one block or an unknown ``fast``.

    Example:
        >>> import pyro.distributions as dist
        >>> import torch
        >>> from pyro_resflow import conditional_residual_flow
        >>> flow = conditional_residual_flow(2, context_dim=3, fast="density")
        >>> base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        >>> conditional = dist.ConditionalTransformedDistribution(base, [flow])
        >>> conditional.condition(torch.randn(20, 3)).log_prob(torch.randn(20, 2)).shape
        torch.Size([20])
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
            network=network,
            **options,
        )
        parts.append(block)
        parts.append(ConditionalAffine(input_dim, context_dim, context_hidden_dims))
        parts.append(ActNorm(input_dim, initialized=starts_from_noise))
    flow = ConditionalCompose(parts)
    return flow if starts_from_noise else ConditionalInverse(flow)


def checked_blocks(blocks: int) -> int:
    """Return the number of blocks.

    Raises:
        ValueError: if it is below 1.
    """
    if blocks < 1:
        raise ValueError(f"blocks: expected at least one residual block, got {blocks}.")
    return blocks
