"""Base classes of conditional transforms, their inverse and their composition."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from pyro.distributions import ConditionalTransformModule
from pyro.distributions.conditional import ConditionalTransform
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from ...rebuilding import Rebuildable
from ..summaries.method import Summarized
from .checks import check_dtype
from .compose import Compose, MeasuredTogether, flattened
from .inverse_memory import InverseMemory
from .one_pass_transform import OnePassTransform


class ConditionalBijection(Rebuildable, InverseMemory, Summarized, ConditionalTransformModule):
    """A conditional transform that is a bijection for every context and has an inverse."""

    bijective = True

    context_event_dim = 1
    """Event dimensions of the context: 1 for vectors, 3 for feature maps of images."""

    @property
    def inv(self) -> ConditionalTransformModule:
        """The conditional inverse, which shares these parameters; ``t.inv.inv is t``."""
        return self._remembered_inverse() or ConditionalInverse(self)

    def forward_shape(self, shape: tuple[int, ...]) -> torch.Size:
        """The shape of the result for an input of a shape, apart from the context's batch."""
        return torch.Size(shape)

    def inverse_shape(self, shape: tuple[int, ...]) -> torch.Size:
        """The shape of the input for a result of a shape, apart from the context's batch."""
        return torch.Size(shape)


class ConditionedTransform(OnePassTransform):
    """A conditional transform at one context.

    The batch dimensions of the context and of the input broadcast.

    Args:
        conditional: the conditioned :class:`ConditionalBijection`; it has a ``domain``.
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
        batch = common_batch(shape[:event], self.context.shape[:context_batch])
        return torch.Size((*batch, *shape[event:]))

    inverse_shape = forward_shape

    def _flat_context(self, batch_shape: torch.Size) -> Tensor:
        """Broadcast the context to a batch and flatten it to shape ``(N, *context_event)``."""
        event_shape = self._context_event_shape
        expanded = self.context.expand(*batch_shape, *event_shape)
        return expanded.reshape(batch_shape.numel(), *event_shape)


class ConditionedCompose(Compose):
    """A sequence of transforms, some of them conditioned on a context; made by ``condition``.

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
    """A sequence of transforms, some or all of them conditional on the same context.

    ``condition(c)`` returns a transform that computes value and log-determinant in one pass, as
    :class:`pyro_resflow.transforms.Compose` does.

    Args:
        parts: transforms and conditional transforms of this package, Pyro or torch; at least one.

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

    def condition(self, context: Tensor) -> Compose:
        """The composition at a context of shape ``(*batch, *context_event)``."""
        return ConditionedCompose(self._conditioned(context), context)

    def _conditioned(self, context: Tensor) -> list[Transform]:
        """The parts at a context."""
        return [
            part.condition(context) if isinstance(part, ConditionalTransform) else part
            for part in self.parts
        ]

    def forward_shape(self, shape: tuple[int, ...]) -> torch.Size:
        for part in self.parts:
            shape = part.forward_shape(shape) if hasattr(part, "forward_shape") else shape
        return torch.Size(shape)

    def inverse_shape(self, shape: tuple[int, ...]) -> torch.Size:
        for part in reversed(self.parts):
            shape = part.inverse_shape(shape) if hasattr(part, "inverse_shape") else shape
        return torch.Size(shape)


class ConditionalInverse(Rebuildable, Summarized, ConditionalTransformModule):
    """The inverse of a conditional transform; it shares the transform's parameters.

    Args:
        transform: the conditional transform.

    Example:
        >>> import torch
        >>> from pyro_resflow.transforms import ConditionalAffine, ConditionalInverse
        >>> t = ConditionalAffine(2, context_dim=3)
        >>> context, x = torch.randn(7, 3), torch.randn(7, 2)
        >>> y = t.condition(context)(x)
        >>> torch.allclose(ConditionalInverse(t).condition(context)(y), x)
        True
    """

    bijective = True
    is_inverse = True

    def __init__(self, transform: ConditionalTransformModule) -> None:
        super().__init__()
        self.transform = transform
        if isinstance(transform, InverseMemory):
            transform.remember_inverse(self)

    @property
    def inv(self) -> ConditionalTransformModule:
        """The conditional transform that this is the inverse of."""
        return self.transform

    def condition(self, context: Tensor) -> Transform:
        """The inverse at a context of shape ``(*batch, *context_event)``."""
        return self.transform.condition(context).inv


def common_batch(batch_shape: Sequence[int], context_batch_shape: Sequence[int]) -> torch.Size:
    """The batch shape to which an input and a context broadcast.

    Raises:
        ValueError: naming both, if they do not broadcast.
    """
    try:
        return torch.broadcast_shapes(tuple(batch_shape), tuple(context_batch_shape))
    except RuntimeError as error:
        raise ValueError(
            "context: expected a batch shape that broadcasts with that of the input, "
            f"{tuple(batch_shape)}, got {tuple(context_batch_shape)}."
        ) from error


def check_context(
    context: Tensor, context_shape: Sequence[int], network: nn.Module | None = None
) -> None:
    """Raise unless ``context`` has shape ``(*batch, *context_shape)`` and the network's dtype.

    Raises:
        ValueError: naming the expected and the given shape or dtype.
    """
    check_is_tensor(context)
    expected = tuple(context_shape)
    batch_dim = context.dim() - len(expected)
    if batch_dim < 0 or tuple(context.shape[batch_dim:]) != expected:
        raise ValueError(
            f"context: expected shape (*batch, {', '.join(map(str, expected))}), got "
            f"{tuple(context.shape)}."
        )
    check_dtype("context", context, network)


def check_is_tensor(context: object) -> None:
    """Raise unless a context is a tensor.

    Raises:
        TypeError: naming what was given, and the remedy.
    """
    if not isinstance(context, Tensor):
        raise TypeError(
            f"context: expected a tensor, got a {type(context).__name__}; convert it by "
            "torch.as_tensor."
        )
