"""Contenders whose number is not a log-density are marked wherever they are named."""

from __future__ import annotations

from collections.abc import Iterable

from .contenders import CONTENDERS

MARK = "†"


def caveat(name: str) -> str:
    """What the number of the contender of this name is instead; empty for a log-density."""
    contender = CONTENDERS.get(name)
    return contender.caveat if contender is not None else ""


def marked(name: str) -> str:
    """The name, with the mark where the number is not a log-density."""
    return f"{name} {MARK}" if caveat(name) else name


def footnotes(names: Iterable[str]) -> list[str]:
    """What the mark means for those of the names that have it, one line each."""
    return [
        f"{MARK} {name}: its number is not a log-density, but {caveat(name)}"
        for name in dict.fromkeys(names)
        if caveat(name)
    ]
