"""What stands for tensors and objects of a pickle, and the few functions that it may call.

Objects of a pickle can refer to one another, and a tuple of tuples of tuples takes a byte each, so
nothing that a pickle makes is hashed, compared or copied unless it is known to be small.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from math import prod
from typing import Any, NamedTuple

import torch

from ..errors import CorruptCheckpointError
from ..layout import DIMENSIONS
from ..texts import quoted

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

SCALARS = (str, bytes, int, float, complex, type(None))
"""What a key may be: its hash takes no more time than reading it took."""


class StandIn:
    """Takes the place of an object of a class that is not loaded: it keeps what it is given.

    Attributes:
        state: what pickle would have set, by name.
    """

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}


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


class Call:
    """What a pickle can call, and has no access to otherwise.

    Args:
        function: what is called.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> StoredTensor:
    """A record of a tensor that lies within its storage, and does not repeat its values."""
    if not isinstance(storage, Storage):
        raise CorruptCheckpointError("it holds a tensor without a storage.")
    numbers = [offset, *_numbers(shape), *_numbers(stride)]
    if len(shape) != len(stride) or any(type(n) is not int or n < 0 for n in numbers):
        raise CorruptCheckpointError(
            f"it holds a tensor of shape {quoted(shape)} and stride {quoted(stride)}."
        )
    return within(StoredTensor(storage, offset, tuple(shape), tuple(stride)))


def within(record: StoredTensor) -> StoredTensor:
    """The record of a tensor, if its storage holds all of it.

    Raises:
        CorruptCheckpointError: if it does not, or if the tensor has more entries than it.
    """
    storage, offset, shape, stride = record
    entries = prod(shape)
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if min((offset, *shape, *stride)) < 0 or (
        entries and (last >= storage.size or entries > storage.size)
    ):
        raise CorruptCheckpointError(
            f"a tensor of shape {quoted(shape)} is larger than what is stored of it."
        )
    return record


def _numbers(found: Any) -> tuple[Any, ...]:
    if not isinstance(found, list | tuple) or len(found) > DIMENSIONS:
        raise CorruptCheckpointError("it holds a tensor whose shape or stride is none.")
    return tuple(found)


def scalars(found: Iterable[Any]) -> list[Any]:
    """The same, if these can be keys."""
    keys = list(found)
    for key in keys:
        if not isinstance(key, SCALARS):
            raise CorruptCheckpointError(f"it uses {quoted(key)} for a key.")
    return keys


def _ordered(pairs: Any = ()) -> OrderedDict[Any, Any]:
    scalars(key for key, _ in pairs)
    return OrderedDict(pairs)


KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *rest: data,
    ("collections", "OrderedDict"): _ordered,
    ("torch", "Size"): lambda sizes=(): tuple(sizes),
    # torch writes pickles of Python 2, which says __builtin__ for builtins
    ("builtins", "set"): lambda entries=(): set(scalars(entries)),
    ("__builtin__", "set"): lambda entries=(): set(scalars(entries)),
}

# Older files say lib for resflows. Options and scores may be numpy's numbers.
PACKAGES = ("resflows", "lib", "torch.nn", "numpy")
STAND_INS = {
    ("argparse", "Namespace"),
    ("_codecs", "encode"),
    ("torch", "device"),
    *(("torch", str(dtype).removeprefix("torch.")) for dtype in DTYPES.values()),
}
