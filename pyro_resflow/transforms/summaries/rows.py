"""What a summary says of each step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.distributions import Transform

from ...nn.lipschitz_constant import held_to
from .shapes import Shape, shapes_between
from .steps import Step, held_transforms

ONE_PASS = "one pass"

UNKNOWN = ""
"""How another library's transform computes a direction is not known here."""


@dataclass(frozen=True)
class Row:
    """What a summary says of a step of a flow.

    Attributes:
        name: the transform's class and what it is made of; it ends in ``.inv`` where a call of
            the flow inverts the transform.
        depth: how many transforms hold this one.
        input_shape: event shape in front of the step, ``None`` if it is not known.
        output_shape: event shape behind it.
        parameters: number of the step's own parameters.
        logdet: class of the estimator of the log-determinant, empty for a closed form.
        random: whether that estimator draws new noise at every call.
        call: how a call of the flow passes the step: ``"one pass"``, or the solver's class.
        inverse: how the flow's inverse passes it.
        lipschitz: the Lipschitz constant that the network of a residual block is held to.
    """

    name: str
    depth: int
    input_shape: Shape
    output_shape: Shape
    parameters: int
    logdet: str
    random: bool
    call: str
    inverse: str
    lipschitz: float | None


def rows_of(
    steps: Sequence[Step], before: Shape = None, after: Shape = None, depth: int = 0
) -> Iterator[Row]:
    """The rows of steps, those of the transforms that a step holds below it."""
    shapes = shapes_between(steps, before, after)
    for step, input_shape, output_shape in zip(steps, shapes, shapes[1:], strict=False):
        transform = step.own
        logdet = getattr(transform, "logdet", None)
        passes = _passes(transform)
        call, inverse = reversed(passes) if step.backwards else passes
        yield Row(
            name=_name(transform) + ".inv" * step.backwards,
            depth=depth,
            input_shape=input_shape,
            output_shape=output_shape,
            parameters=_own_parameters(transform),
            logdet=type(logdet).__name__ if logdet is not None else "",
            random=logdet is not None and not logdet.is_deterministic,
            call=call,
            inverse=inverse,
            lipschitz=held_to(transform.net) if logdet is not None else None,
        )
        for chain in step.inside:
            yield from rows_of(chain, depth=depth + 1)


def _passes(transform: Any) -> tuple[str, str]:
    """How the two directions are computed."""
    closed_form = type(transform).__module__ == Transform.__module__  # one of torch's own
    default = (ONE_PASS, ONE_PASS) if closed_form else (UNKNOWN, UNKNOWN)
    return getattr(transform, "passes", default)


def _name(transform: Any) -> str:
    """A transform's class, with those of the network, or of mask and map, that make it up."""
    made_of = [getattr(transform, name, None) for name in ("mask", "elementwise")]
    if hasattr(transform, "logdet"):
        made_of = [transform.net]
    inner = ", ".join(type(part).__name__ for part in made_of if part is not None)
    return f"{type(transform).__name__}({inner})" if inner else type(transform).__name__


def _own_parameters(transform: Any) -> int:
    """How many parameters a transform has beside those of the transforms that it holds."""
    if not isinstance(transform, nn.Module):
        return 0
    held = {id(each) for each in nn.ModuleList(held_transforms(transform)).parameters()}
    return sum(each.numel() for each in transform.parameters() if id(each) not in held)
