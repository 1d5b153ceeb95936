"""The rows of a summary, one for each step of a flow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.distributions import Transform

from ...nn import why_autograd
from ...nn.lipschitz_constant import nominal_lipschitz_constant
from .shapes import Shape, shapes_between
from .steps import Step, held_transforms

ONE_PASS = "one pass"

UNKNOWN = ""
"""Stands for the direction of a transform of another library, which may iterate."""


@dataclass(frozen=True)
class Row:
    """One step of a flow.

    Attributes:
        name: class names of the transform and its main parts; it ends in ``.inv`` if a call of
            the flow inverts the transform.
        depth: number of transforms that contain this one.
        input_shape: event shape of the step's input, ``None`` if it is not known.
        output_shape: event shape of its output, ``None`` if it is not known.
        parameters: number of parameters, without those of transforms inside.
        logdet: class of the log-determinant estimator, empty for a closed form.
        random: whether the estimator draws new noise at every call.
        call: how a call of the flow computes the step: ``"one pass"``, or a solver's class.
        inverse: how the flow's inverse computes it.
        lipschitz: nominal Lipschitz constant of a residual block's network, else ``None``.
        why_autograd: why a residual block's network is evaluated by autograd, see
            :func:`pyro_resflow.nn.why_autograd`; else empty.
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
    why_autograd: str = ""


def rows_of(
    steps: Sequence[Step], before: Shape = None, after: Shape = None, depth: int = 0
) -> Iterator[Row]:
    """Yield a row for each step, followed by the rows of the transforms inside it."""
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
            # a damaged file may have set another object as the estimator
            random=not getattr(logdet, "is_deterministic", True),
            call=call,
            inverse=inverse,
            lipschitz=nominal_lipschitz_constant(transform.net) if logdet is not None else None,
            why_autograd=_why_autograd(transform),
        )
        for chain in step.inside:
            yield from rows_of(chain, depth=depth + 1)


def _why_autograd(transform: Any) -> str:
    """Why a residual block's network is evaluated by autograd; empty if it is not."""
    if not hasattr(transform, "logdet") or hasattr(transform.net, "bind"):
        return ""  # a conditional block gets its network from bind, once the context is known
    return why_autograd(transform.net)


def _passes(transform: Any) -> tuple[str, str]:
    """How a transform computes a call and its inverse."""
    closed_form = type(transform).__module__ == Transform.__module__  # one of torch's own
    default = (ONE_PASS, ONE_PASS) if closed_form else (UNKNOWN, UNKNOWN)
    return getattr(transform, "passes", default)


def _name(transform: Any) -> str:
    """The name of a transform's class, with the classes of its network, or of its mask and map."""
    made_of = [getattr(transform, name, None) for name in ("mask", "elementwise")]
    if hasattr(transform, "logdet"):
        made_of = [transform.net]
    inner = ", ".join(type(part).__name__ for part in made_of if part is not None)
    return f"{type(transform).__name__}({inner})" if inner else type(transform).__name__


def _own_parameters(transform: Any) -> int:
    """The number of a transform's parameters, without those of the transforms inside it."""
    if not isinstance(transform, nn.Module):
        return 0
    held = {id(each) for each in nn.ModuleList(held_transforms(transform)).parameters()}
    return sum(each.numel() for each in transform.parameters() if id(each) not in held)
