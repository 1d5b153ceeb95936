"""Safetensors files with a JSON description: written atomically and checked when read."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from .description import Checker
from .errors import CorruptCheckpointError, UnknownVersionError
from .layout import Header, bytes_of, pieces, read_header, read_tensor
from .limits import Limits
from .opening import PathLike
from .replacing import replaced
from .texts import listed, printable, quoted

VERSION = 1
"""The format version that is written; this and earlier versions can be read."""

DESCRIPTION = "pyro_resflow"
CHECKSUM = "pyro_resflow.crc32"
"""The keys of the file's metadata: the description, as JSON, and its checksum."""

PARTS = {
    "flow": dict,
    "settings": dict,
    "training": bool,
    "notes": dict,
    "torch": str,
    "checksums": dict,
}
"""The parts of a description, apart from its version, and their types."""


class Contents(NamedTuple):
    """The contents of a file.

    Attributes:
        description: everything but the tensors; its version and checksums have been checked.
        tensors: on the CPU, by name.
    """

    description: dict[str, Any]
    tensors: dict[str, Tensor]


def write(path: PathLike, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a file; an existing file stays intact until the new one is complete.

    Args:
        path: the file.
        description: a JSON-serializable description.
        tensors: by name; they may share memory.

    Raises:
        OSError: if the folder does not exist or is not writable, or the disk is full.
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"path: the folder {target.parent} does not exist. Create it first."
        )
    copies = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    checksums = {name: checksum(tensor) for name, tensor in copies.items()}
    text = json.dumps({"version": VERSION, **description, "checksums": checksums})
    metadata = {"format": "pt", DESCRIPTION: text, CHECKSUM: str(zlib.crc32(text.encode()))}
    with replaced(target) as file:
        file.writelines(pieces(metadata, copies))


def read(file: BinaryIO, limits: Limits) -> Contents:
    """Read a file and verify its checksums.

    Args:
        file: open for reading.
        limits: limits on the file's contents.

    Raises:
        CorruptCheckpointError: for a file that is truncated, damaged or not in this format.
        UnknownVersionError: for a format version that this release cannot read.
    """
    header, description = _read_start(file, limits)
    checksums = description["checksums"]
    if header.entries.keys() != checksums.keys():
        differing = listed(set(header.entries.keys() ^ checksums.keys()))
        raise CorruptCheckpointError(
            f"damaged: the list of tensors does not match the checksums, {differing}."
        )
    tensors = {}
    for name in header.entries:
        tensors[name] = read_tensor(file, header, name)
        if checksum(tensors[name]) != checksums[name]:
            raise CorruptCheckpointError(
                f"damaged: the tensor {quoted(name)} does not match its checksum."
            )
    return Contents(description, tensors)


def read_shapes(
    file: BinaryIO, limits: Limits
) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """The description, and the shapes of the tensors by name, without the tensors.

    Raises:
        CorruptCheckpointError: see :func:`read`.
        UnknownVersionError: see :func:`read`.
    """
    header, description = _read_start(file, limits)
    return description, {name: entry.shape for name, entry in header.entries.items()}


def begins_as_torch_file(file: BinaryIO) -> bool:
    """Whether a file begins like a ``torch.save`` file."""
    start = file.read(9)
    file.seek(0)
    # the first eight bytes of a safetensors file are a length and may have any value
    return start[:2] in (b"PK", b"\x80\x02") and start[8:] != b"{"


def _read_start(file: BinaryIO, limits: Limits) -> tuple[Header, dict[str, Any]]:
    if begins_as_torch_file(file):
        raise CorruptCheckpointError(
            "this is a torch.save file. Read a checkpoint of the reference implementation with "
            "load_reference, any other with torch.load."
        )
    header = read_header(file, limits)
    description = _description(header.metadata)
    check_description(description, limits)
    return header, description


def _description(metadata: Mapping[str, str]) -> dict[str, Any]:
    text = metadata.get(DESCRIPTION)
    if text is None:
        raise CorruptCheckpointError("it was not written by pyro_resflow.checkpoints.save.")
    try:
        description = json.loads(text)
        version = description["version"]
        found = str(zlib.crc32(text.encode()))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptCheckpointError(
            f"damaged: its description is not valid JSON ({printable(str(error))})."
        ) from error
    if type(version) is not int or version not in range(1, VERSION + 1):
        raise UnknownVersionError(
            f"format version {quoted(version)}; this release of pyro_resflow reads up to "
            f"{VERSION}. Update pyro_resflow."
        )
    if metadata.get(CHECKSUM) != found:
        raise CorruptCheckpointError("damaged: its description does not match its checksum.")
    for part, kind in PARTS.items():
        if not isinstance(description.get(part), kind):
            raise CorruptCheckpointError(f"its description has no {part!r}.")
    if not all(isinstance(text, str) for text in description["notes"].values()):
        raise CorruptCheckpointError("its notes are not strings.")
    return description


def check_description(description: Mapping[str, Any], limits: Limits) -> None:
    """Raise unless the description of a flow and its settings are well formed.

    Raises:
        CorruptCheckpointError: for a malformed entry, with its location.
        LimitError: for too many or too deeply nested entries.
    """
    checker = Checker(limits)
    checker.check(description["flow"], "flow")
    for path, attributes in description["settings"].items():
        if not isinstance(attributes, dict):
            raise CorruptCheckpointError("settings: expected names and values for each module.")
        for name, node in attributes.items():
            checker.check(node, f"settings of {quoted(path)}, {quoted(name)}")


def checksum(tensor: Tensor) -> int:
    """The CRC-32 of the dtype, shape and values of a CPU tensor."""
    start = zlib.crc32(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    return zlib.crc32(bytes_of(tensor.contiguous()), start)
