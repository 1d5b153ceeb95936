"""Reads pickles without running what they ask for.

A pickle is a program that calls what it names. Here a few names stand for what they are; the
reference implementation's classes, torch's modules and the like become stand-ins that only take
note of what they are given; tensors become records of where their values are in the file. A
pickle that names anything else is refused.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import IO, Any, NamedTuple

import torch

from .errors import CorruptCheckpointError, UnsafePickleError

DTYPES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}
"""What torch calls the memory of tensors of each type."""


class StandIn:
    """Takes the place of an object of a class that is not loaded: it keeps what it is given.

    Attributes:
        state: what pickle would have set, by name.
    """

    state: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> StandIn:
        self = super().__new__(cls)
        self.state = {}
        return self

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.state = state

    # It may have been a list or a dictionary.

    def __setitem__(self, key: Any, value: Any) -> None:
        """An entry that is not kept."""

    def append(self, value: Any) -> None:
        """An entry that is not kept."""

    def extend(self, values: Any) -> None:
        """Entries that are not kept."""


class Storage(NamedTuple):
    """A piece of memory in a file: its key, its type and its number of entries."""

    key: str
    dtype: torch.dtype
    size: int


class StoredTensor(NamedTuple):
    """A tensor in a file: a view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class RestrictedUnpickler(pickle._Unpickler):
    """Reads one pickle of a file of ``torch.save``.

    Python's own unpickler, not the one in C: that makes room for as many objects as a pickle says
    it has, and a damaged pickle may say more than there is memory for.

    Args:
        file: at the beginning of the pickle; afterwards at its end.

    Attributes:
        storages: the pieces of memory that the pickle mentions, by key.
    """

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]()
        if module in ("torch", "torch.cuda") and name in DTYPES:
            return DTYPES[name]
        inside = any(module == each or module.startswith(f"{each}.") for each in _PACKAGES)
        if inside or (module, name) in _STAND_INS:
            return type(name, (StandIn,), {"__module__": module})
        raise UnsafePickleError(
            f"the pickle asks for {module}.{name}, which has no part in a checkpoint of the "
            "reference implementation. It was not called. Do not open this file by other means "
            "unless you trust those who made it."
        )

    def persistent_load(self, pid: Any) -> Any:
        kind, what, *rest = pid
        if kind == "module":  # a class, with its source code
            return what
        if kind != "storage" or not isinstance(what, torch.dtype):
            raise CorruptCheckpointError(f"it refers to {kind!r}, which is no storage.")
        key, _, size, *view = rest
        if view and view[0] is not None:
            raise CorruptCheckpointError("a storage that is a part of another is not supported.")
        storage = Storage(str(key), what, int(size))
        return self.storages.setdefault(storage.key, storage)


def _tensor_function() -> Callable[..., StoredTensor]:
    def rebuild(storage: Any, offset: int, shape: Any, stride: Any, *rest: Any) -> StoredTensor:
        if not isinstance(storage, Storage):
            raise CorruptCheckpointError("it holds a tensor without a storage.")
        return StoredTensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, stride)))

    return rebuild


def _parameter_function() -> Callable[..., Any]:
    return lambda data, *rest: data


# Functions are made anew for each pickle, so that none can leave something behind for the next.
# torch writes pickles of Python 2, which says __builtin__ for builtins.
_KNOWN: dict[tuple[str, str], Callable[[], Any]] = {
    ("torch._utils", "_rebuild_tensor"): _tensor_function,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor_function,
    ("torch._utils", "_rebuild_parameter"): _parameter_function,
    ("collections", "OrderedDict"): lambda: OrderedDict,
    ("torch", "Size"): lambda: tuple,
    ("builtins", "set"): lambda: set,
    ("__builtin__", "set"): lambda: set,
}

# Older files say lib for resflows. Options and scores may be numpy's numbers.
_PACKAGES = ("resflows", "lib", "torch.nn", "numpy")
_STAND_INS = {
    ("argparse", "Namespace"),
    ("_codecs", "encode"),
    ("torch", "device"),
    *(("torch", str(dtype).removeprefix("torch.")) for dtype in DTYPES.values()),
}
