"""Check a file's description before any object is built from it.

A reference points to an earlier object, so a few lines can describe an object of any size: a pair
of references to a pair of references to a pair. Each reference therefore counts as many entries as
its object has, because code that copies, compares or prints the object visits them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from .dtypes import DTYPES
from .errors import CorruptCheckpointError, LimitError
from .limits import Limits
from .texts import quoted

FLOATS = {name: float(name) for name in ("nan", "inf", "-inf")}
"""Numbers that JSON cannot represent."""

LONGEST_NAME = 200
"""The largest number of characters in an argument's name."""

LARGEST = 2**128
"""Integers in a description must be smaller: powers of larger ones could fill any memory."""

KINDS: dict[str, frozenset[str]] = {
    "class": frozenset({"arguments", "positional", "id"}),
    "tensor": frozenset({"parameter", "id"}),
    "ref": frozenset(),
    "type": frozenset(),
    "partial": frozenset({"arguments", "positional"}),
    "tuple": frozenset(),
    "size": frozenset(),
    "dict": frozenset(),
    "dtype": frozenset(),
    "float": frozenset(),
}
"""For each kind of entry, the keys allowed in addition to the kind itself."""


class Checker:
    """Checks the entries of one description, in the order in which objects are built from them.

    Args:
        limits: the largest number of entries and the deepest nesting.

    Raises:
        CorruptCheckpointError: for a malformed entry, with its location.
        LimitError: for too many or too deeply nested entries.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._spent = 0
        self._sizes: dict[int, int] = {}

    def check(self, node: Any, where: str, depth: int = 0) -> None:
        """Check an entry and all entries inside it.

        Args:
            node: the parsed JSON.
            where: the node's location, for error messages.
            depth: the number of entries around it.
        """
        self._spend(1, where)
        if depth > self.limits.depth:
            raise LimitError(f"{where[:100]}...: nested deeper than limits: depth={depth - 1}.")
        if isinstance(node, list):
            for place, entry in enumerate(node):
                self.check(entry, f"{where}[{place}]", depth + 1)
        elif isinstance(node, dict):
            self._check_entry(node, where, depth)
        elif isinstance(node, int) and abs(node) >= LARGEST:
            raise CorruptCheckpointError(f"{where}: expected a number, got {quoted(node)}.")

    def _check_entry(self, node: dict[str, Any], where: str, depth: int) -> None:
        before = self._spent
        kinds = node.keys() & KINDS.keys()
        if len(kinds) != 1:
            raise CorruptCheckpointError(
                f"{where}: expected one kind of entry, got {quoted(list(node))}."
            )
        (kind,) = kinds
        if surplus := node.keys() - KINDS[kind] - {kind}:
            raise CorruptCheckpointError(
                f"{where}: an entry of kind {kind!r} has no {quoted(sorted(surplus))}."
            )
        if not _VALUES[kind](node[kind]):
            raise CorruptCheckpointError(f"{where}: {quoted(node[kind])} is not a valid {kind!r}.")
        if kind == "ref":
            self._spend(self._size_of(node["ref"], where), where)
        if kind == "tensor":
            self._expect(isinstance(node.get("parameter"), bool), "parameter", where)
        for entry, place in self._inside(kind, node, where):
            self.check(entry, place, depth + 1)
        if "id" in node:
            self._remember(node["id"], self._spent - before, where)

    def _inside(self, kind: str, node: dict[str, Any], where: str) -> Iterator[tuple[Any, str]]:
        """The entries inside an entry, with their locations."""
        if kind in ("partial", "tuple", "size"):
            yield node[kind], where
        if kind == "dict":
            for place, (key, value) in enumerate(node["dict"]):
                yield key, f"{where}, key {place}"
                yield value, f"{where}, value {place}"
        if kind in ("class", "partial"):
            positional, arguments = node.get("positional", []), node.get("arguments")
            self._expect(isinstance(positional, list), "positional", where)
            self._expect(isinstance(arguments, dict), "arguments", where)
            yield positional, f"{where}.positional"
            for name, entry in node["arguments"].items():
                if not name.isidentifier() or len(name) > LONGEST_NAME:
                    raise CorruptCheckpointError(
                        f"{where}: {quoted(name)} is not a valid argument name."
                    )
                yield entry, f"{where}.{name}"

    def _expect(self, found: bool, key: str, where: str) -> None:
        if not found:
            raise CorruptCheckpointError(f"{where}: the entry has no valid {key!r}.")

    def _size_of(self, number: int, where: str) -> int:
        if number not in self._sizes:
            raise CorruptCheckpointError(
                f"{where}: the entry refers to object {quoted(number)}, which does not come "
                "before it."
            )
        return self._sizes[number]

    def _remember(self, number: Any, size: int, where: str) -> None:
        if type(number) is not int or number in self._sizes:
            raise CorruptCheckpointError(
                f"{where}: expected an integer id that no other object has, got {quoted(number)}."
            )
        self._sizes[number] = size

    def _spend(self, entries: int, where: str) -> None:
        self._spent += entries
        if self._spent > self.limits.entries:
            raise LimitError(
                f"{where[:100]}...: more entries, counting referenced ones, than limits: "
                f"entries={self.limits.entries:,}."
            )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


_VALUES: dict[str, Callable[[Any], bool]] = {
    "class": _is_text,
    "tensor": _is_text,
    "ref": lambda value: type(value) is int,
    "type": _is_text,
    "partial": lambda value: isinstance(value, dict),
    "tuple": _is_list,
    "size": _is_list,
    "dict": lambda value: _is_list(value) and all(_is_list(p) and len(p) == 2 for p in value),
    "dtype": lambda value: isinstance(value, str) and value in DTYPES,
    "float": lambda value: isinstance(value, str) and value in FLOATS,
}
"""The check of the value of each kind of entry."""
