"""The event shapes between the steps of a flow, where they are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .steps import Step

Shape = torch.Size | None
"""An event shape; ``None`` if it is not known."""


def shapes_between(
    steps: Sequence[Step], before: Shape = None, after: Shape = None
) -> list[Shape]:
    """The event shape of each step's input, and of the last step's output.

    Some transforms declare their event shape; ``forward_shape`` and ``inverse_shape`` propagate it
    to the others.

    Args:
        steps: the steps.
        before: event shape of the first step's input, if it is known.
        after: event shape of the last step's output, if it is known.
    """
    shapes: list[Shape] = [None] * (len(steps) + 1)
    for i, step in enumerate(steps):
        own = _own_shape(step.own)
        shapes[i + step.backwards] = shapes[i + step.backwards] or own
    shapes[0], shapes[-1] = before or shapes[0], after or shapes[-1]
    for i, step in enumerate(steps):
        shapes[i + 1] = shapes[i + 1] or _propagated(step, shapes[i], onwards=True)
    for i, step in reversed(list(enumerate(steps))):
        shapes[i] = shapes[i] or _propagated(step, shapes[i + 1], onwards=False)
    return shapes


def _own_shape(transform: Any) -> Shape:
    """The event shape of a transform's input, if the transform declares it."""
    mask = getattr(transform, "mask", None)
    for holder, name in (
        (transform, "event_shape"),
        (transform, "_event_shape"),  # of a contraction
        (mask, "event_shape"),
        (transform, "in_shape"),  # of torch's ReshapeTransform
    ):
        shape = getattr(holder, name, None)
        if shape is not None:
            return torch.Size(shape)
    features = getattr(transform, "feature_shape", None)  # of an ActNorm
    if features is not None and len(features) == transform.domain.event_dim:
        return torch.Size(features)
    size = getattr(transform, "input_dim", getattr(transform, "num_features", None))
    is_vector = features is None and _event_dim(transform) == 1
    return torch.Size((size,)) if is_vector and isinstance(size, int) else None


def _event_dim(transform: Any) -> int | None:
    return getattr(getattr(transform, "domain", None), "event_dim", None)


def _propagated(step: Step, shape: Shape, *, onwards: bool) -> Shape:
    """The shape on the other side of a step, given the shape on one side."""
    transform = step.own
    if shape is None or not hasattr(transform, "forward_shape"):
        return shape  # conditional transforms of Pyro keep the shape
    forwards = onwards is not step.backwards
    move: Callable[[Any], Any] = transform.forward_shape if forwards else transform.inverse_shape
    try:
        return torch.Size(move(shape))
    except (ValueError, NotImplementedError):  # the transform does not accept this shape
        return None
