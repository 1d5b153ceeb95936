"""Multiply scalings into neighbouring affine maps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .affine import Affine
from .scale import Scale, Translate
from .stage import Stage


def folded(stages: Iterable[Stage[Any]]) -> list[Stage[Any]]:
    """The stages with each scaling multiplied into the affine map before or after it, if any."""
    result: list[Stage[Any]] = []
    for stage in stages:
        if isinstance(stage, Scale):
            _add_scale(result, stage)
        elif isinstance(stage, Affine) and result and isinstance(result[-1], Scale):
            result[-1] = Affine(stage.layer, (*result[-1].gains, *stage.before), stage.after)
        else:
            result.append(stage)
    return result


def _add_scale(stages: list[Stage[Any]], scale: Scale) -> None:
    """Append a scaling to stages, or multiply its gains into the last stage."""
    last = stages[-1] if stages else None
    if isinstance(last, Translate):  # g (x + s) = g x + g s
        stages.pop()
        _add_scale(stages, scale)
        stages.append(Translate(last.shift, (*last.after, *scale.gains)))
    elif isinstance(last, Affine):
        stages[-1] = Affine(last.layer, last.before, (*last.after, *scale.gains))
    elif isinstance(last, Scale):
        stages[-1] = Scale(*last.gains, *scale.gains)
    else:
        stages.append(scale)
