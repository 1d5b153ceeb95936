"""Conditional transforms: what they share, their inverse and composition, and an affine one."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from pyro.distributions import ConditionalTransformModule
from pyro.distributions.conditional import ConditionalTransform
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from ..rebuilding import Rebuildable
from .base import InverseMemory, OnePassTransform, check_dtype, check_event_shape
from .compose import Compose, MeasuredTogether, flattened
from .elementwise_maps import BoundedLogScale


class ConditionalBijection(Rebuildable, InverseMemory, ConditionalTransformModule):
    """A conditional transform that is a bijection at every context, and knows its inverse."""

    bijective = True

    context_event_dim = 1
    """Event dimensions of the context: 1 for vectors, 3 for feature maps of images."""

    @property
    def inv(self) -> ConditionalTransformModule:
        """The conditional inverse, with these parameters; ``t.inv.inv is t``."""
        return self._remembered_inverse() or ConditionalInverse(self)


class ConditionedTransform(OnePassTransform):
    """A conditional transform at one context, whose batch dimensions broadcast with the input's.

    Args:
        conditional: the :class:`ConditionalBijection` that was conditioned; it has a ``domain``.
        context: shape ``(*batch, *context_event)``.
        cache_size: 0 or 1.
    """

    context: Tensor

    def __init__(self, conditional: Any, context: Tensor, *, cache_size: int = 1) -> None:
        super().__init__(cache_size=cache_size)
        self.conditional = conditional
        self.context = context
        self._context_event_shape = context.shape[context.dim() - conditional.context_event_dim :]

    @constraints.dependent_property(is_discrete=False)
    def domain(self) -> constraints.Constraint:
        return self.conditional.domain

    codomain = domain

    def forward_shape(self, shape: tuple[int, ...]) -> torch.Size:
        event = len(shape) - self.domain.event_dim
        context_batch = self.context.dim() - len(self._context_event_shape)
        batch = torch.broadcast_shapes(shape[:event], self.context.shape[:context_batch])
        return torch.Size((*batch, *shape[event:]))

    inverse_shape = forward_shape

    def _flat_context(self, batch_shape: torch.Size) -> Tensor:
        """One context per sample of a batch that it broadcasts to, ``(N, *context_event)``."""
        event_shape = self._context_event_shape
        expanded = self.context.expand(*batch_shape, *event_shape)
        return expanded.reshape(batch_shape.numel(), *event_shape)


class ConditionedCompose(Compose):
    """Transforms one after the other, some of them at a context; made by ``condition``.

    Args:
        parts: see :class:`pyro_resflow.transforms.Compose`.
        context: shape ``(*batch, *context_event)``.
        cache_size: 0 or 1.
    """

    context: Tensor

    def __init__(
        self, parts: Iterable[Transform], context: Tensor, *, cache_size: int = 1
    ) -> None:
        super().__init__(parts, cache_size=cache_size)
        self.context = context


class ConditionalCompose(MeasuredTogether, ConditionalBijection):
    """Transforms one after the other, some or all of them conditional, on the same context.

    What ``condition(c)`` returns gathers value and log-determinant in one pass, as
    :class:`pyro_resflow.transforms.Compose` does.

    Args:
        parts: conditional transforms and transforms, ours, Pyro's or torch's, at least one.

    Raises:
        ValueError: without parts, or for a part that is neither a conditional transform nor a
            bijective transform.

    Example:
        >>> import torch
        >>> from pyro_resflow import conditional_residual
        >>> from pyro_resflow.transforms import ActNorm, ConditionalCompose, initialize
        >>> t = ConditionalCompose([conditional_residual(2, context_dim=3), ActNorm(2)])
        >>> initialize(t, torch.randn(16, 2), context=torch.randn(16, 3))
        >>> t.condition(torch.randn(7, 3))(torch.randn(7, 2)).shape
        torch.Size([7, 2])
    """

    def __init__(self, parts: Iterable[Transform | ConditionalTransform]) -> None:
        super().__init__()
        self.parts: list[Transform | ConditionalTransform] = []
        for part in parts:
            if isinstance(part, ConditionalTransform):
                self.parts.append(part)
            else:
                self.parts.extend(flattened([part]))
        if not self.parts:
            raise ValueError("parts: expected at least one transform, got none.")
        for i, part in enumerate(self.parts):
            if isinstance(part, nn.Module):
                self.add_module(str(i), part)

    def condition(self, context: Tensor) -> ConditionedCompose:
        """The composition at a context of shape ``(*batch, *context_event)``."""
        return ConditionedCompose(
            [
                part.condition(context) if isinstance(part, ConditionalTransform) else part
                for part in self.parts
            ],
            context,
        )


class ConditionalInverse(Rebuildable, ConditionalTransformModule):
    """The inverse of a conditional transform, sharing its parameters.

    Args:
        transform: the conditional transform.
    """

    bijective = True

    def __init__(self, transform: ConditionalTransformModule) -> None:
        super().__init__()
        self.transform = transform
        if isinstance(transform, InverseMemory):
            transform.remember_inverse(self)

    @property
    def inv(self) -> ConditionalTransformModule:
        """The conditional transform that this one inverts."""
        return self.transform

    def condition(self, context: Tensor) -> Transform:
        """The inverse at a context of shape ``(*batch, *context_event)``."""
        return self.transform.condition(context).inv


class ConditionalAffine(ConditionalBijection):
    r"""Scale and shift of each entry by a context, :math:`y = e^{s(c)} x + b(c)`.

    The log-scales are kept within :math:`\pm\bar s` by :math:`s = \bar s\tanh(h/\bar s)` of the
    network's output h, so that no context makes a scale overflow. The network's last layer is zero
    to begin with: the transform starts as the identity.

    Alone on normal noise this is heteroscedastic normal regression. Between conditional residual
    blocks it does for each context what an :class:`pyro_resflow.transforms.ActNorm` does for the
    whole batch.

    Args:
        input_dim: D, size of the vectors.
        context_dim: size of the context.
        hidden_dims: widths of the hidden layers of the network.

    Reference:
        Lu and Huang, Structured Output Learning with Conditional Generative Flows, 2020.

    Example:
        >>> import torch
        >>> from pyro_resflow.transforms import ConditionalAffine
        >>> t = ConditionalAffine(2, context_dim=3).condition(torch.randn(7, 3))
        >>> x = torch.randn(7, 2)
        >>> torch.equal(t(x), x)
        True
    """

    domain = codomain = constraints.real_vector

    largest_log_scale = 5.0
    r"""The bound :math:`\bar s` of the log-scales."""

    def __init__(
        self, input_dim: int, context_dim: int, hidden_dims: Sequence[int] = (64,)
    ) -> None:
        super().__init__()
        self.input_dim = input_dim
        self.context_dim = context_dim
        widths = [context_dim, *hidden_dims, 2 * input_dim]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.SiLU()]
        self.net = nn.Sequential(*layers[:-1])
        for parameter in self.net[-1].parameters():
            nn.init.zeros_(parameter)
        self._log_scale = BoundedLogScale(self.largest_log_scale)

    def condition(self, context: Tensor) -> ConditionedAffine:
        """The transform at a context.

        Args:
            context: shape ``(*batch, context_dim)``.

        Raises:
            ValueError: for a context of another width.
        """
        check_context(context, (self.context_dim,), self)
        return ConditionedAffine(self, context)

    def log_scale_and_shift(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """s(c) and b(c), each of shape ``(*batch, input_dim)``."""
        raw, shift = self.net(context).chunk(2, dim=-1)
        return self._log_scale(raw), shift


class ConditionedAffine(ConditionedTransform):
    """A conditional affine transform at one context; made by ``condition``."""

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._at("x", x)
        y = x * log_scale.exp() + shift
        return y, log_scale.sum(-1).expand(y.shape[:-1])

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._at("y", y)
        x = (y - shift) * (-log_scale).exp()
        return x, log_scale.sum(-1).expand(x.shape[:-1])

    def _inverse(self, y: Tensor) -> Tensor:
        return self.inverse_and_ladj(y)[0]

    def _at(self, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
        check_event_shape(name, x, (self.conditional.input_dim,))
        log_scale, shift = self.conditional.log_scale_and_shift(self.context)
        # of the network's half precision under autocast neither scale nor log-determinant is made
        dtype = torch.promote_types(x.dtype, log_scale.dtype)
        return log_scale.to(dtype), shift.to(dtype)


def check_context(
    context: Tensor, context_shape: Sequence[int], network: nn.Module | None = None
) -> None:
    """Raise unless ``context`` has shape ``(*batch, *context_shape)``, and the network's type.

    Raises:
        ValueError: saying what was expected and what was given.
    """
    expected = tuple(context_shape)
    batch_dim = context.dim() - len(expected)
    if batch_dim < 0 or tuple(context.shape[batch_dim:]) != expected:
        raise ValueError(
            f"context: expected shape (*batch, {', '.join(map(str, expected))}), got "
            f"{tuple(context.shape)}."
        )
    check_dtype("context", context, network)
