"""An amortized posterior of local latent variables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ..arguments import checked
from ..flows.vectors import checked_blocks
from ..logdet import LogDetEstimator
from ..nn import ConditionalLipschitzMLP
from ..rebuilding import Rebuildable
from ..solvers import FixedPointSolver
from ..transforms import ActNorm, ConditionalAffine, ConditionalCompose, conditional_residual
from .start import guide_logdet, shrink_last_layers


class AmortizedResidualFlow(Rebuildable, dist.ConditionalDistribution, nn.Module):
    r"""An amortized posterior q(z | c) of vectors, for local latent variables.

    Standard normal noise passes through residual blocks whose layers all depend on the context,
    and then through a scale and a shift that depend on it.

    Args:
        latent_dim: size of z.
        context_dim: size of the context, for instance of an encoder's output.
        blocks: number of residual blocks.
        hidden_dims: widths of the hidden layers of each block; default ``[64]``.
        context_hidden_dims: widths of the hidden layers of the context networks.
        logdet: see :class:`AutoResidualFlow`.
        solver: see :class:`AutoResidualFlow`.
        network: the class of each block's contraction, see
            :func:`pyro_resflow.transforms.conditional_residual`.
        options: further arguments of that class.

    Raises:
        ValueError: for fewer than one block.

    Example:
        >>> import pyro, torch
        >>> from pyro_resflow.guides import AmortizedResidualFlow
        >>> posterior = AmortizedResidualFlow(2, context_dim=3, blocks=2)
        >>> def guide(x):
        ...     pyro.module("posterior", posterior)
        ...     with pyro.plate("data", len(x)):
        ...         return pyro.sample("z", posterior.condition(x))
        >>> guide(torch.randn(7, 3)).shape
        torch.Size([7, 2])
    """

    @checked(ConditionalLipschitzMLP, chosen_by="network")
    def __init__(
        self,
        latent_dim: int,
        context_dim: int,
        blocks: int = 4,
        hidden_dims: Sequence[int] | None = None,
        *,
        context_hidden_dims: Sequence[int] = (64,),
        logdet: LogDetEstimator | None = None,
        solver: FixedPointSolver | None = None,
        network: type[nn.Module] = ConditionalLipschitzMLP,
        **options: Any,
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        logdet = logdet if logdet is not None else guide_logdet(latent_dim)
        hidden_dims = hidden_dims if hidden_dims is not None else (64,)
        parts: list[Any] = []
        for _ in range(checked_blocks(blocks)):
            block = conditional_residual(
                latent_dim,
                context_dim,
                hidden_dims,
                context_hidden_dims=context_hidden_dims,
                logdet=logdet,
                solver=solver,
                network=network,
                **options,
            )
            parts += [block, ActNorm(latent_dim, initialized=True)]
        parts.append(ConditionalAffine(latent_dim, context_dim, context_hidden_dims))
        self.flow = ConditionalCompose(parts)
        shrink_last_layers(self)

    def condition(self, context: Tensor) -> dist.TransformedDistribution:
        """The posterior at a context.

        Args:
            context: shape ``(*batch, context_dim)``.

        Returns:
            A distribution of batch shape ``batch`` and event shape ``(latent_dim,)``, for use
            inside and outside plates.
        """
        # the parameters' dtype: under autocast an encoder's output has a lower precision
        zeros = next(self.parameters()).new_zeros(self.latent_dim)
        base = dist.Normal(zeros, torch.ones_like(zeros)).to_event(1)
        return dist.TransformedDistribution(base, [self.flow.condition(context)])
