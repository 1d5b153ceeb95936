"""The base class of image flows that depend on a context: a label or a vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Transform

from ..transforms import ConditionalCompose, ConditionalInverse
from ..transforms.core.checks import check_dtype
from ..transforms.core.conditional import check_is_tensor, common_batch
from .contexts import Labels, Vectors
from .image_flow import Encoder, ImageFlow, standard_noise


class ConditionalEncoder(ConditionalCompose):
    """A sequence of transforms from images to vectors that depend on a context.

    Args:
        parts: transforms and conditional transforms.
        event_shape: ``(C, H, W)``.
        context: checks contexts, and embeds labels.
    """

    def __init__(
        self, parts: Sequence[Any], event_shape: Sequence[int], context: Labels | Vectors
    ) -> None:
        super().__init__(parts)
        self.event_shape = torch.Size(event_shape)
        self.context = context
        self.context_event_dim = context.event_dim

    def condition(self, context: Tensor) -> Encoder:
        """The encoder at a context."""
        return self.flow(context).encoder

    def flow(self, context: Tensor) -> ConditionedImageFlow:
        """The inverse of the encoder at a context."""
        check_is_tensor(context)
        check_dtype("context", context, self)
        vectors = self.context(context)
        return ConditionedImageFlow(
            self._conditioned(vectors), self.event_shape, vectors.shape[:-1]
        )

    def forward_shape(self, shape: tuple[int, ...]) -> torch.Size:
        return torch.Size((*shape[: len(shape) - 3], self.event_shape.numel()))

    def inverse_shape(self, shape: tuple[int, ...]) -> torch.Size:
        return torch.Size((*shape[:-1], *self.event_shape))


class ConditionalImageFlow(ConditionalInverse):
    """A flow from noise vectors to images on [0, 1] that depends on a label or on a vector.

    ``condition(context)`` returns an unconditional :class:`ImageFlow`. The batch dimensions of the
    context broadcast with those of the images. Register and train the conditional flow; the
    conditioned flows share its parameters.

    Args:
        parts: the encoder, a sequence of transforms and conditional transforms from images
            ``(C, H, W)`` to vectors of the same number of entries.
        event_shape: ``(C, H, W)``.
        context: checks contexts, and embeds labels.
    """

    def __init__(
        self, parts: Sequence[Any], event_shape: Sequence[int], context: Labels | Vectors
    ) -> None:
        super().__init__(ConditionalEncoder(parts, event_shape, context))
        self.event_shape = torch.Size(event_shape)

    @property
    def encoder(self) -> ConditionalEncoder:
        """The inverse, from images to noise vectors."""
        return cast(ConditionalEncoder, self.transform)

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None if contexts are vectors."""
        context = self.encoder.context
        return context.embedding.num_embeddings if isinstance(context, Labels) else None

    @property
    def latent_dim(self) -> int:
        """Size D of the noise vector."""
        return self.event_shape.numel()

    def condition(self, context: Tensor) -> ImageFlow:
        """The flow at a context.

        Args:
            context: integer labels of shape ``(*batch,)``, or vectors of shape
                ``(*batch, context_dim)``.

        Raises:
            TypeError: for a context that is not a tensor.
            ValueError: for labels out of range, or a context of another shape or dtype.
        """
        return self.encoder.flow(context)

    def distribution(self) -> dist.ConditionalTransformedDistribution:
        """The conditional distribution of images: its ``condition`` takes the context."""
        return dist.ConditionalTransformedDistribution(standard_noise(self), [self])

    def forward_shape(self, shape: tuple[int, ...]) -> torch.Size:
        """The shape of images for noise of a shape, apart from the context's batch."""
        return self.encoder.inverse_shape(shape)

    def inverse_shape(self, shape: tuple[int, ...]) -> torch.Size:
        """The shape of noise for images of a shape, apart from the context's batch."""
        return self.encoder.forward_shape(shape)


class ConditionedImageFlow(ImageFlow):
    """A conditional image flow at one context; made by ``condition``.

    Args:
        parts: see :class:`ImageFlow`.
        event_shape: see :class:`ImageFlow`.
        batch_shape: batch shape of the context.
    """

    def __init__(
        self,
        parts: Sequence[Transform],
        event_shape: Sequence[int],
        batch_shape: Sequence[int],
    ) -> None:
        super().__init__(parts, event_shape)
        self.batch_shape = torch.Size(batch_shape)

    def forward_shape(self, shape: tuple[int, ...]) -> torch.Size:
        batch = common_batch(shape[:-1], self.batch_shape)
        return torch.Size((*batch, *self.event_shape))

    def inverse_shape(self, shape: tuple[int, ...]) -> torch.Size:
        batch = common_batch(shape[: len(shape) - 3], self.batch_shape)
        return torch.Size((*batch, self.latent_dim))
