"""Stand-ins for the tensors and objects of a pickle, and the few functions that it may call.

Objects of a pickle can refer to one another, and a nested tuple takes one byte per level. Objects
from a pickle are therefore hashed, compared or copied only if they are known to be small.
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
"""torch's names of storages, and their dtypes."""

SCALARS = (str, bytes, int, float, complex, type(None))
"""Types of keys. Hashing them takes no longer than reading them did."""


class StandIn:
    """Replaces an object of a class that is not imported, and stores its state.

    Attributes:
        state: the attributes that pickle would have set, by name.
    """

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}


class Storage(NamedTuple):
    """A storage in a file: its key, its dtype and its number of entries."""

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
    """Wraps a function that a pickle may call, without giving access to the function's attributes.

    Args:
        function: the function.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> StoredTensor:
    """The record of a tensor that lies within its storage and has no more entries than it."""
    if not isinstance(storage, Storage):
        raise CorruptCheckpointError("it contains a tensor without a storage.")
    numbers = [offset, *_numbers(shape), *_numbers(stride)]
    if len(shape) != len(stride) or any(type(n) is not int or n < 0 for n in numbers):
        raise CorruptCheckpointError(
            f"it contains a tensor of shape {quoted(shape)} and stride {quoted(stride)}."
        )
    return within(StoredTensor(storage, offset, tuple(shape), tuple(stride)))


def within(record: StoredTensor) -> StoredTensor:
    """The record of a tensor, checked to lie within its storage.

    Raises:
        CorruptCheckpointError: if it does not, or if it has more entries than its storage.
    """
    storage, offset, shape, stride = record
    entries = prod(shape)
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if min((offset, *shape, *stride)) < 0 or (
        entries and (last >= storage.size or entries > storage.size)
    ):
        raise CorruptCheckpointError(
            f"a tensor of shape {quoted(shape)} is larger than its storage."
        )
    return record


def _numbers(found: Any) -> tuple[Any, ...]:
    if not isinstance(found, list | tuple) or len(found) > DIMENSIONS:
        raise CorruptCheckpointError("it contains a tensor with an invalid shape or stride.")
    return tuple(found)


def scalars(found: Iterable[Any]) -> list[Any]:
    """The objects as a list, checked to be valid keys."""
    keys = list(found)
    for key in keys:
        if not isinstance(key, SCALARS):
            raise CorruptCheckpointError(f"it uses {quoted(key)} as a key.")
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
    # torch writes Python 2 pickles, in which builtins is called __builtin__
    ("builtins", "set"): lambda entries=(): set(scalars(entries)),
    ("__builtin__", "set"): lambda entries=(): set(scalars(entries)),
}

# Older files use lib for resflows. Options and scores may be NumPy numbers.
PACKAGES = ("resflows", "lib", "torch.nn", "numpy")
STAND_INS = {
    ("argparse", "Namespace"),
    ("_codecs", "encode"),
    ("torch", "device"),
    *(("torch", str(dtype).removeprefix("torch.")) for dtype in DTYPES.values()),
}
