"""Mark the names of contenders whose number is not a log-density."""

from __future__ import annotations

from collections.abc import Iterable

from .contenders import CONTENDERS

MARK = "†"


def caveat(name: str) -> str:
    """The number that a contender computes; empty for a log-density."""
    contender = CONTENDERS.get(name)
    return contender.caveat if contender is not None else ""


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
