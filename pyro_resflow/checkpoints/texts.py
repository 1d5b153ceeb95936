"""What files say, on one line of bounded length that a terminal can show."""

from __future__ import annotations

import os

LENGTH = 200
"""Characters of a text in an error message."""

BITS = 256
"""Bits of the largest integer that is written out: longer ones may not even have decimals."""

SHOWN = 5
"""The number of names or entries that a message lists."""


def printable(text: str, length: int = LENGTH) -> str:
    r"""A text without control characters, and cut to a length.

    Example:
        >>> printable("red: \x1b[31m")
        'red: \\x1b[31m'
    """
    rest = f"... ({len(text):,} characters)" if len(text) > length else ""
    return "".join(map(_escaped, text[:length])) + rest


def quoted(value: object) -> str:
    """A number or a text as Python writes it; of anything else, what it is.

    Nothing is followed further than into a list: objects from files can refer to one another, and
    be endless when they are written out.
    """
    if isinstance(value, str):
        rest = f"... ({len(value):,} characters)" if len(value) > LENGTH else ""
        return repr(value[:LENGTH]) + rest
    if isinstance(value, list | tuple):
        entries = ", ".join(map(_entry, value[:SHOWN]))
        return f"[{entries}{', ...' if len(value) > SHOWN else ''}]"
    return _entry(value)


def shown(value: object, length: int = LENGTH) -> str:
    """The same, with a text as it is, and cut to a length."""
    return printable(value, length) if isinstance(value, str) else quoted(value)


def listed(names: set[str]) -> str:
    """Some names, in order."""
    some = ", ".join(map(quoted, sorted(names)[:SHOWN]))
    return some if len(names) <= SHOWN else f"{some} and {len(names) - SHOWN} more"


def shown_path(path: str | bytes | os.PathLike[str]) -> str:
    """A path for a message: one that is no UTF-8, or holds a line break, can be shown too."""
    return "".join(map(_escaped, os.fsdecode(path)))


def _entry(value: object) -> str:
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, int) and value.bit_length() > BITS:
        return f"an integer of {value.bit_length():,} bits"
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    made = type(value)
    return f"<{printable(made.__module__)}.{printable(made.__name__)}>"


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode("ascii")
