"""Safetensors files with a description in JSON: written whole or not at all, read with checks."""

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
from .opening import Path_
from .replacing import replaced
from .texts import listed, printable, quoted

VERSION = 1
"""The format version that is written; it and the ones before are read."""

DESCRIPTION = "pyro_resflow"
CHECKSUM = "pyro_resflow.crc32"
"""The entries of the file's metadata: the description, as JSON, and its checksum."""

PARTS = {
    "flow": dict,
    "settings": dict,
    "training": bool,
    "notes": dict,
    "torch": str,
    "checksums": dict,
}
"""What a description consists of, its version aside."""


class Contents(NamedTuple):
    """What a file holds.

    Attributes:
        description: all but the tensors; its ``version`` is known and its ``checksums`` hold.
        tensors: on the CPU, by name.
    """

    description: dict[str, Any]
    tensors: dict[str, Tensor]


def write(path: Path_, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a file; what was there before stays whole until the new one is.

    Args:
        path: the file.
        description: what JSON can hold.
        tensors: by name, no two of which need be distinct in memory.

    Raises:
        OSError: if the folder is not there or cannot be written to, or the disk is full.
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(f"path: there is no folder {target.parent}; make it first.")
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
    """Read a file and check that it is whole.

    Args:
        file: open for reading.
        limits: what it may ask for.

    Raises:
        CorruptCheckpointError: for a file that is truncated, damaged or not of this format.
        UnknownVersionError: for a format version that this release cannot read.
    """
    header, description = _read_start(file, limits)
    checksums = description["checksums"]
    if header.entries.keys() != checksums.keys():
        differing = listed(set(header.entries.keys() ^ checksums.keys()))
        raise CorruptCheckpointError(f"damaged: the list of tensors is not its own, {differing}.")
    tensors = {}
    for name in header.entries:
        tensors[name] = read_tensor(file, header, name)
        if checksum(tensors[name]) != checksums[name]:
            raise CorruptCheckpointError(
                f"damaged: the tensor {quoted(name)} is not what was written."
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
    """Whether a file begins as those of ``torch.save`` do."""
    start = file.read(9)
    file.seek(0)
    # the first eight bytes of a safetensors file are a length, which can be anything
    return start[:2] in (b"PK", b"\x80\x02") and start[8:] != b"{"


def _read_start(file: BinaryIO, limits: Limits) -> tuple[Header, dict[str, Any]]:
    if begins_as_torch_file(file):
        raise CorruptCheckpointError(
            "this is a file of torch.save. A checkpoint of the reference implementation is read "
            "by load_reference; anything else by torch.load."
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
            f"damaged: its description is no JSON of ours ({printable(str(error))})."
        ) from error
    if type(version) is not int or version not in range(1, VERSION + 1):
        raise UnknownVersionError(
            f"format version {quoted(version)}; this release of pyro_resflow reads up to "
            f"{VERSION}. Update pyro_resflow."
        )
    if metadata.get(CHECKSUM) != found:
        raise CorruptCheckpointError("damaged: its description is not what was written.")
    for part, kind in PARTS.items():
        if not isinstance(description.get(part), kind):
            raise CorruptCheckpointError(f"its description has no {part!r}.")
    if not all(isinstance(text, str) for text in description["notes"].values()):
        raise CorruptCheckpointError("its notes are no texts.")
    return description


def check_description(description: Mapping[str, Any], limits: Limits) -> None:
    """Raise unless something can be made of a flow's description and its settings.

    Raises:
        CorruptCheckpointError: for an entry that nothing can be made of, saying where.
        LimitError: for more or deeper ones than allowed.
    """
    checker = Checker(limits)
    checker.check(description["flow"], "flow")
    for path, attributes in description["settings"].items():
        if not isinstance(attributes, dict):
            raise CorruptCheckpointError("settings: expected names and values for each module.")
        for name, node in attributes.items():
            checker.check(node, f"settings of {quoted(path)}, {quoted(name)}")


def checksum(tensor: Tensor) -> int:
    """A CRC-32 of a tensor on the CPU: of its type, its shape and its values."""
    start = zlib.crc32(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    return zlib.crc32(bytes_of(tensor.contiguous()), start)
