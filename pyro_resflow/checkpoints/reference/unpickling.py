"""Read pickles without running the code that they name.

A pickle is a program that calls functions by name. This unpickler resolves a short list of safe
names. Classes of the reference implementation and of torch become stand-ins that only store their
state, and tensors become records of where their values are in the file. A pickle that names
anything else is rejected.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO, ClassVar

import torch

from ..errors import CorruptCheckpointError, LimitError, UnsafePickleError
from ..limits import Limits
from ..texts import printable, quoted
from .records import DTYPES, KNOWN, PACKAGES, STAND_INS, Call, StandIn, Storage, scalars

CLASSES = 1000
"""The largest number of classes in a pickle; a checkpoint of the reference names some thirty."""

_PERSISTENT = 6
"""The largest number of parts of a reference: its kind, type, key, device, size and view."""


class Counted:
    """Reads a file from its current position, up to a number of bytes.

    A pickle gives the length of a string before the string. ``file.read`` allocates that length
    even if the file is shorter, so the length is checked first.

    Args:
        file: open for reading.
        limit: the number of bytes.
    """

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self._file = file
        self._limit = limit
        start = file.tell()
        self._in_file = file.seek(0, 2) - start
        self._left = min(limit, self._in_file)
        file.seek(start)

    def read(self, size: int) -> bytes:
        """Read this number of bytes."""
        self._consume(size)
        return self._file.read(size)

    def readline(self) -> bytes:
        """Read a line with its line end."""
        line = self._file.readline(self._left)
        self._left -= len(line)
        return line

    def _consume(self, size: int) -> None:
        self._left -= size
        if self._left >= 0:
            return
        if self._in_file > self._limit:
            raise LimitError(f"the pickle is longer than limits: header={self._limit:,} bytes.")
        raise EOFError("it ends inside a pickle")


class RestrictedUnpickler(pickle._Unpickler):
    """Reads one pickle of a ``torch.save`` file.

    It derives from Python's own unpickler, not the one in C: the latter allocates as many objects
    as the pickle claims to have, which for a damaged pickle may exceed the memory. Instructions
    that change an object are replaced by versions that check the kind of object.

    Args:
        file: positioned at the beginning of the pickle; afterwards at its end.
        limits: limits on the pickle's length and number of instructions.

    Attributes:
        storages: the storages that the pickle mentions, by key.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]]
    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, file: BinaryIO, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        super().__init__(Counted(file, self._limits.header))
        self.storages: dict[str, Storage] = {}
        self._left = self._limits.instructions
        self._made: dict[tuple[str, str], Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._made:
            if len(self._made) == CLASSES:
                raise LimitError(f"the pickle names more than {CLASSES} classes.")
            self._made[module, name] = self._stand_in(module, name)
        return self._made[module, name]

    def _stand_in(self, module: str, name: str) -> Any:
        if (module, name) in KNOWN:
            return Call(KNOWN[module, name])
        if module in ("torch", "torch.cuda") and name in DTYPES:
            return DTYPES[name]
        inside = any(module == each or module.startswith(f"{each}.") for each in PACKAGES)
        if inside or (module, name) in STAND_INS:
            return type(name, (StandIn,), {"__module__": module})
        raise UnsafePickleError(
            f"the pickle asks for {printable(f'{module}.{name}')}, which does not belong in a "
            "checkpoint of the reference implementation. It was not called. Do not open this file "
            "by other means unless you trust its source."
        )

    def persistent_load(self, pid: Any) -> Any:
        if not isinstance(pid, tuple) or not 2 <= len(pid) <= _PERSISTENT:
            raise CorruptCheckpointError(f"it refers to {quoted(pid)}, which is not a storage.")
        kind, referent, *rest = pid
        if kind == "module":  # a class with its source code
            return referent
        if kind != "storage" or not isinstance(referent, torch.dtype):
            raise CorruptCheckpointError(f"it refers to {quoted(kind)}, which is not a storage.")
        key, _, size, *view = rest + [None] * (3 - len(rest))
        if view and view[0] is not None:
            raise CorruptCheckpointError("a storage that is part of another is not supported.")
        if not isinstance(key, str) or type(size) is not int or size < 0:
            raise CorruptCheckpointError(
                f"it refers to a storage {quoted(key)} of {quoted(size)} entries."
            )
        return self.storages.setdefault(key, Storage(key, referent, size))

    def call(self, function: Any, args: Any) -> None:
        """Put the result of a call, or its stand-in, on the stack."""
        if not isinstance(args, tuple):
            raise CorruptCheckpointError(f"it calls something with {quoted(args)}.")
        # charge for the entries that the call may copy
        self.spend(len(args) + sum(len(each) for each in args if hasattr(each, "__len__")))
        if isinstance(function, Call):
            self.append(function(*args))
        elif isinstance(function, type) and issubclass(function, StandIn):
            self.append(function())
        else:
            raise CorruptCheckpointError(f"it calls {quoted(function)}.")

    def _instantiate(self, klass: Any, args: Any) -> None:
        self.call(klass, tuple(args))

    def spend(self, instructions: int) -> None:
        """Count instructions.

        Raises:
            LimitError: if there are more than allowed.
        """
        self._left -= instructions
        if self._left < 0:
            raise LimitError(
                "the pickle has more instructions than limits: "
                f"instructions={self._limits.instructions:,}."
            )

    def _reduce(self) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        self.call(function, args)

    def _reduce_by_name(self) -> None:
        self.stack.pop()  # keyword arguments, which only stand-ins can have
        self._reduce()

    def _append(self) -> None:
        entry = self.stack.pop()
        _extend(self.stack[-1], [entry])

    def _appends(self) -> None:
        entries = self.pop_mark()
        _extend(self.stack[-1], entries)

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _update(self.stack[-1], [key, value])

    def _set_items(self) -> None:
        items = self.pop_mark()
        _update(self.stack[-1], items)

    def _make_dict(self) -> None:
        made: dict[Any, Any] = {}
        _update(made, self.pop_mark())
        self.append(made)

    def _add_items(self) -> None:
        entries, target = self.pop_mark(), self.stack[-1]
        if type(target) is not set:
            raise CorruptCheckpointError(f"it adds to {quoted(target)}.")
        target.update(scalars(entries))

    def _freeze(self) -> None:
        self.append(frozenset(scalars(self.pop_mark())))

    def _build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, StandIn):
            target.state = state if isinstance(state, dict) else {}
        elif type(target) is not OrderedDict:  # a state_dict's version numbers are dropped
            raise CorruptCheckpointError(f"it sets the state of {quoted(target)}.")


def _extend(target: Any, entries: list[Any]) -> None:
    if type(target) is list:
        target += entries
    elif not isinstance(target, StandIn):  # a stand-in for a list drops the entries
        raise CorruptCheckpointError(f"it appends to {quoted(target)}.")


def _update(target: Any, items: list[Any]) -> None:
    """Set items of a dict from a list that alternates keys and values."""
    if isinstance(target, dict):
        target.update(zip(scalars(items[::2]), items[1::2], strict=True))
    elif not isinstance(target, StandIn):
        raise CorruptCheckpointError(f"it sets an entry of {quoted(target)}.")


_REFUSED = {
    *(pickle.EXT1, pickle.EXT2, pickle.EXT4),  # objects that the process has unpickled before
    *(pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
}
"""Instructions that torch never writes."""

_CHANGED: dict[bytes, Callable[[Any], None]] = {
    pickle.REDUCE: RestrictedUnpickler._reduce,
    pickle.NEWOBJ: RestrictedUnpickler._reduce,
    pickle.NEWOBJ_EX: RestrictedUnpickler._reduce_by_name,
    pickle.APPEND: RestrictedUnpickler._append,
    pickle.APPENDS: RestrictedUnpickler._appends,
    pickle.SETITEM: RestrictedUnpickler._set_item,
    pickle.SETITEMS: RestrictedUnpickler._set_items,
    pickle.DICT: RestrictedUnpickler._make_dict,
    pickle.ADDITEMS: RestrictedUnpickler._add_items,
    pickle.FROZENSET: RestrictedUnpickler._freeze,
    pickle.BUILD: RestrictedUnpickler._build,
}


def _counted(instruction: Callable[[Any], None]) -> Callable[[Any], None]:
    def run(self: RestrictedUnpickler) -> None:
        self.spend(1)
        instruction(self)

    return run


RestrictedUnpickler.dispatch = {
    code: _counted(_CHANGED.get(bytes([code]), instruction))
    for code, instruction in pickle._Unpickler.dispatch.items()
    if bytes([code]) not in _REFUSED
}
