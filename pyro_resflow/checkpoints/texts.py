"""Format values from files as one line of bounded length that is safe to print."""

from __future__ import annotations

import os

LENGTH = 200
"""The largest number of characters of a string in an error message."""

BITS = 256
"""Bits of the largest integer that is written out: Python limits the conversion to decimals."""

SHOWN = 5
"""The number of names or entries that a message lists."""


def printable(text: str, length: int = LENGTH) -> str:
    r"""A string with control characters escaped, truncated to a length.

    Example:
        >>> printable("red: \x1b[31m")
        'red: \\x1b[31m'
    """
    rest = f"... ({len(text):,} characters)" if len(text) > length else ""
    return "".join(map(_escaped, text[:length])) + rest


def quoted(value: object) -> str:
    """The repr of a number or a string; for any other object, its class.

    Only lists are entered, one level deep: objects from files can refer to one another, and their
    repr can be endless.
    """
    if isinstance(value, str):
        rest = f"... ({len(value):,} characters)" if len(value) > LENGTH else ""
        return repr(value[:LENGTH]) + rest
    if isinstance(value, list | tuple):
        entries = ", ".join(map(_entry, value[:SHOWN]))
        return f"[{entries}{', ...' if len(value) > SHOWN else ''}]"
    return _entry(value)


def shown(value: object, length: int = LENGTH) -> str:
    """Like :func:`quoted`, but strings appear without quotes, truncated to a length."""
    return printable(value, length) if isinstance(value, str) else quoted(value)


def listed(names: set[str]) -> str:
    """The first few names, sorted."""
    some = ", ".join(map(quoted, sorted(names)[:SHOWN]))
    return some if len(names) <= SHOWN else f"{some} and {len(names) - SHOWN} more"


def shown_path(path: str | bytes | os.PathLike[str]) -> str:
    """A path for a message, with undecodable and control characters escaped."""
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
