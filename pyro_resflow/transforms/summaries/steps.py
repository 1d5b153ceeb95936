"""The steps of a flow, in the order of a call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from pyro.distributions.conditional import (
    ConditionalComposeTransformModule,
    ConditionalTransform,
    ConstantConditionalTransform,
)
from torch import nn
from torch.distributions import Transform
from torch.distributions.transforms import _InverseTransform

HOLDS_A_FLOW = ("transforms", "flow_dist", "flow", "transform", "body", "base_dist")
"""Attributes of distributions, hybrid models, guides and classifiers that contain a flow."""


@dataclass(frozen=True, eq=False)
class Step:
    """A transform other than a composition, and the direction in which the flow uses it.

    Args:
        transform: the transform, conditional or not.
        backwards: whether a call of the flow inverts it.
    """

    transform: Any
    backwards: bool

    @property
    def own(self) -> Any:
        """The transform; for a conditioned one, its conditional transform."""
        return getattr(self.transform, "conditional", self.transform)

    @property
    def inside(self) -> list[list[Step]]:
        """The steps of each transform inside this one, for instance the levels after a split."""
        return [steps_of([part], backwards=self.backwards) for part in held_transforms(self.own)]


def held_transforms(transform: object) -> list[Any]:
    """The transforms inside a transform, if that is a module."""
    children = transform.children() if isinstance(transform, nn.Module) else ()
    return [child for child in children if is_transform(child)]


def is_transform(part: object) -> bool:
    """Whether an object is a transform, conditional or not."""
    return isinstance(part, Transform | ConditionalTransform)


def transforms_of(flow: object) -> list[Any]:
    """The transforms of a flow, or of a distribution, guide or model that contains one.

    Raises:
        ValueError: if it contains no transform.
    """
    found = _found(flow)
    if not found:
        raise ValueError(
            "flow: expected a transform, or a distribution, guide or model that contains one, got "
            f"{type(flow).__name__} without any. A guide builds its flow at its first call."
        )
    return found


def _found(flow: object) -> list[Any]:
    if is_transform(flow):
        return [flow]
    if isinstance(flow, list | tuple | nn.ModuleList):
        return list(flow) if all(map(is_transform, flow)) else []
    held = (getattr(flow, name, None) for name in HOLDS_A_FLOW)
    return next((found for each in held if each is not None and (found := _found(each))), [])


def steps_of(parts: Iterable[Any], *, backwards: bool = False) -> list[Step]:
    """The steps of a sequence of transforms.

    Args:
        parts: the transforms; compositions and inverses are expanded.
        backwards: whether the sequence is inverted, starting with the last transform.
    """
    steps: list[Step] = []
    for part in reversed(list(parts)) if backwards else parts:
        steps += _expanded(part, backwards)
    return steps


def _expanded(part: Any, backwards: bool) -> list[Step]:
    if isinstance(part, ConstantConditionalTransform):
        return _expanded(part.transform, backwards)
    inverted = _inverted(part)
    if inverted is not None:
        return _expanded(inverted, not backwards)
    parts = _parts(part)
    return [Step(part, backwards)] if parts is None else steps_of(parts, backwards=backwards)


def _inverted(part: Any) -> Any:
    """The transform of which this is the inverse; ``None`` if it is not an inverse."""
    if isinstance(part, _InverseTransform):
        return part.inv
    return part.transform if getattr(part, "is_inverse", False) else None


def _parts(part: Any) -> Sequence[Any] | None:
    """The parts of a composition of any library; ``None`` for any other transform."""
    if isinstance(part, ConditionalComposeTransformModule):
        return cast(Sequence[Any], part.transforms)
    parts = getattr(part, "parts", None)
    is_composition = isinstance(parts, list | tuple) and all(map(is_transform, parts))
    return cast(Sequence[Any], parts) if is_composition else None
