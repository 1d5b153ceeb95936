"""The layout of safetensors files: a length, a JSON header, and the values of the tensors.

The safetensors package reads and writes the same files. It opens the path itself and maps the file
into memory, so that the program crashes if another process truncates the file; and it writes
metadata in an order that differs between runs. This module reads a file through one handle, checks
every number before it is used, and writes the same bytes for the same content.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from io import BufferedReader
from math import prod
from typing import Any, BinaryIO, NamedTuple, cast

import torch
from torch import Tensor

from .errors import CheckpointError, CorruptCheckpointError, LimitError
from .limits import Limits
from .opening import size_of
from .texts import printable, quoted

METADATA = "__metadata__"
"""The header's key for string metadata."""

CODES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""The format's names of dtypes."""

NAMES = {dtype: code for code, dtype in CODES.items()}

LENGTH = 8
"""Bytes of the length field; the header is padded to a multiple of it."""

LARGEST = 2**63 - 1
"""The largest size of a dimension in torch."""

DIMENSIONS = 64
"""The largest number of dimensions in torch."""


class Entry(NamedTuple):
    """A tensor in a file: its dtype, its shape and the offsets of its values."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


class Header(NamedTuple):
    """The header of a file.

    Attributes:
        metadata: strings by name.
        entries: tensors by name, in the order of their values.
        start: the offset of the first value.
    """

    metadata: dict[str, str]
    entries: dict[str, Entry]
    start: int


def read_header(file: BinaryIO, limits: Limits) -> Header:
    """Read the header and check that the values fill the rest of the file.

    Raises:
        LimitError: for a header that is longer than allowed.
        CorruptCheckpointError: for a file that is truncated, damaged or not in this format.
    """
    _check_byte_order()
    available = size_of(file) - LENGTH
    file.seek(0)
    length = int.from_bytes(file.read(LENGTH), "little")
    if available < 0 or length > available:
        raise _broken("it ends inside its header")
    if length > limits.header:
        raise LimitError(f"its header has {length:,} bytes; limits: header={limits.header:,}.")
    try:
        content = json.loads(_exactly(file, length).decode())
    except (ValueError, RecursionError) as error:
        raise _broken(f"its header is not valid JSON, {printable(str(error))}") from error
    if not isinstance(content, dict):
        raise _broken("its header is not a JSON object")
    metadata = content.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(t, str) for t in metadata.values()):
        raise _broken("its metadata are not strings")
    entries = {name: _entry(name, each) for name, each in content.items()}
    entries = dict(sorted(entries.items(), key=lambda item: item[1][2:]))
    _check_gapless(entries, available - length)
    return Header(metadata, entries, LENGTH + length)


def read_tensor(file: BinaryIO, header: Header, name: str) -> Tensor:
    """A tensor, on the CPU.

    Raises:
        CorruptCheckpointError: if the file has become shorter, or for an invalid boolean.
    """
    dtype, shape, start, end = header.entries[name]
    file.seek(header.start + start)
    return tensor_of(_exactly(file, end - start), dtype).reshape(shape)


def tensor_of(values: bytearray, dtype: torch.dtype) -> Tensor:
    """The vector of a dtype whose memory is these bytes."""
    if not values:
        return torch.empty(0, dtype=dtype)
    raw = torch.frombuffer(values, dtype=torch.uint8)
    if dtype is torch.bool and bool((raw > 1).any()):
        raise CorruptCheckpointError("damaged: a boolean in it is neither 0 nor 1.")
    return raw.view(dtype)


def bytes_of(tensor: Tensor) -> Any:
    """The values of a contiguous tensor on the CPU, as a buffer."""
    return tensor.reshape(-1).view(torch.uint8).numpy()


def pieces(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Iterator[Any]:
    """The bytes of a file, in pieces: the same bytes for the same content.

    Args:
        metadata: strings by name.
        tensors: contiguous tensors on the CPU, by name.

    Raises:
        CheckpointError: for a dtype that the format does not support.
    """
    _check_byte_order()
    # wide dtypes first, so that all values are aligned
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {METADATA: dict(sorted(metadata.items()))}
    end = 0
    for name in names:
        tensor = tensors[name]
        if tensor.dtype not in NAMES:
            raise CheckpointError(
                f"the tensor {name!r} has dtype {tensor.dtype}, which files do not support."
            )
        start, end = end, end + tensor.numel() * tensor.dtype.itemsize
        place = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape)}
        header[name] = {**place, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH)
    yield len(text).to_bytes(LENGTH, "little") + text
    yield from (bytes_of(tensors[name]) for name in names)


def _entry(name: str, found: Any) -> Entry:
    """An entry of the header, checked for consistency."""
    if not isinstance(found, dict) or found.keys() != {"dtype", "shape", "data_offsets"}:
        raise _broken(f"the tensor {quoted(name)} lacks a dtype, shape or offsets")
    code, shape, place = found["dtype"], found["shape"], found["data_offsets"]
    if not isinstance(code, str) or code not in CODES:
        raise _broken(f"the tensor {quoted(name)} has an unknown dtype, {quoted(code)}")
    if not _are_numbers(shape) or len(shape) > DIMENSIONS:
        raise _broken(f"the tensor {quoted(name)} has an invalid shape, {quoted(shape)}")
    if not _are_numbers(place) or len(place) != 2:
        raise _broken(f"the tensor {quoted(name)} has invalid offsets, {quoted(place)}")
    start, end = place
    if end - start != prod(shape) * CODES[code].itemsize:
        raise _broken(f"the size of the tensor {quoted(name)} does not match shape {tuple(shape)}")
    return Entry(CODES[code], tuple(shape), start, end)


def _check_gapless(entries: Mapping[str, Entry], available: int) -> None:
    """Raise unless the values of the tensors follow one another without gaps and fill the file."""
    end = 0
    for name, entry in entries.items():
        if entry.start != end:
            raise _broken(f"the values of {quoted(name)} do not follow those before them")
        end = entry.end
    if end != available:
        raise _broken(f"expected {end:,} bytes of values, got {available:,}")


def _are_numbers(found: Any) -> bool:
    # `type(n) is int` because a bool is an int too
    return isinstance(found, list) and all(type(n) is int and 0 <= n <= LARGEST for n in found)


def _exactly(file: BinaryIO, length: int) -> bytearray:
    found = bytearray(length)
    # the file is buffered, so that a single call reads everything unless the file ends
    if cast(BufferedReader, file).readinto(found) != length:
        raise _broken("it became shorter while it was read")
    return found


def _broken(reason: str) -> CorruptCheckpointError:
    return CorruptCheckpointError(
        f"truncated or damaged: not a complete safetensors file ({reason})."
    )


def _check_byte_order() -> None:
    if sys.byteorder != "little":
        raise CheckpointError("checkpoints are supported on little-endian machines only.")
