"""Mark the names of contenders whose number is not a log-density."""

from __future__ import annotations

from collections.abc import Iterable

from .contenders import CONTENDERS
from .vector_flows import VECTOR_CONTENDERS

MARK = "†"

CAVEATS = {c.name: c.caveat for c in (*CONTENDERS.values(), *VECTOR_CONTENDERS)}


def caveat(name: str) -> str:
    """The number that a contender computes; empty for a log-density."""
    return CAVEATS.get(name, "")


def marked(name: str) -> str:
    """The name, with the mark if the contender's number is not a log-density."""
    return f"{name} {MARK}" if caveat(name) else name


def footnotes(names: Iterable[str]) -> list[str]:
    """Explain the mark for each marked name, one line each."""
    return [
        f"{MARK} {name}: its number is not a log-density, but {caveat(name)}"
        for name in dict.fromkeys(names)
        if caveat(name)
    ]
