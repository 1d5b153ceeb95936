"""Contexts of image flows: labels, which are embedded, and vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..rebuilding import Rebuildable
from ..transforms.core.conditional import check_context
from ..transforms.core.ranges import can_validate

EMBEDDING_DIM = 16
"""Default size of an embedded label. Each number is one more input channel of a coupling's
conditioner, so that few are cheap; 16 numbers distinguish far more than 16 classes."""


class Labels(Rebuildable, nn.Module):
    """Integer labels as the context, embedded in vectors that are learned.

    Args:
        num_classes: K; labels are 0 .. K - 1.
        embedding_dim: size of the vectors.
    """

    event_dim = 0
    """Event dimensions of a label."""

    def __init__(self, num_classes: int, embedding_dim: int = EMBEDDING_DIM) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_classes, embedding_dim)

    @property
    def size(self) -> int:
        """Size of the vectors."""
        return self.embedding.embedding_dim

    def forward(self, context: Tensor) -> Tensor:
        """The vectors of labels of shape ``(*batch,)``.

        Raises:
            ValueError: for labels that are not integers 0 .. K - 1.
        """
        classes = self.embedding.num_embeddings
        integral = not (context.is_floating_point() or context.is_complex())
        if not integral or context.dtype == torch.bool:
            raise ValueError(
                f"context: expected integer labels 0 .. {classes - 1}, got {context.dtype}. "
                "Convert labels by .long(); for vectors, build the flow with context_dim instead "
                "of num_classes."
            )
        context = context.long()
        if can_validate(context):
            least, most = torch.stack(torch.aminmax(context)).tolist()
            if least < 0 or most >= classes:
                raise ValueError(
                    f"context: expected labels 0 .. {classes - 1} for num_classes={classes}, got "
                    f"labels from {least} to {most}."
                )
        vectors: Tensor = self.embedding(context)
        return vectors


class Vectors(Rebuildable, nn.Module):
    """Vectors as the context.

    Args:
        context_dim: size of the vectors.
    """

    event_dim = 1
    """Event dimensions of a vector."""

    def __init__(self, context_dim: int) -> None:
        super().__init__()
        self.size = context_dim

    def forward(self, context: Tensor) -> Tensor:
        """The vectors, shape ``(*batch, context_dim)``.

        Raises:
            ValueError: for another size, or integers.
        """
        if not context.is_floating_point():
            raise ValueError(
                f"context: expected floating-point vectors of size {self.size}, got "
                f"{context.dtype}. For integer labels, build the flow with num_classes instead of "
                "context_dim."
            )
        check_context(context, (self.size,))
        return context


def context_of(
    num_classes: int | None, context_dim: int | None, embedding_dim: int
) -> Labels | Vectors:
    """The kind of context that the arguments of a conditional flow choose.

    Args:
        num_classes: number of labels.
        context_dim: size of vectors.
        embedding_dim: size of an embedded label.

    Raises:
        ValueError: unless exactly one of the first two is given.
    """
    if num_classes is not None and context_dim is None:
        return Labels(num_classes, embedding_dim)
    if context_dim is not None and num_classes is None:
        return Vectors(context_dim)
    given = "neither" if num_classes is None else "both"
    raise ValueError(
        "num_classes, context_dim: expected num_classes for integer labels or context_dim for "
        f"vectors, got {given}."
    )
