"""Safetensors files with a description in JSON: written whole or not at all, read with checks."""

from __future__ import annotations

import json
import os
import stat
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..extras import extra
from .errors import CheckpointError, CorruptCheckpointError, UnknownVersionError

with extra("checkpoints"):
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file

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

Path_ = str | os.PathLike[str]


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
        OSError: if the folder is not there or cannot be written to.
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
    with _replaced(target) as temporary:
        save_file(copies, temporary, metadata)


@contextmanager
def _replaced(target: Path) -> Iterator[Path]:
    """A file to write to, in the same folder, that takes the target's place once it is on disk."""
    name = f".{target.name}.{os.getpid()}.{threading.get_ident()}.tmp"
    temporary = target.with_name(name)
    try:
        temporary.touch()
        mode = (target if target.exists() else temporary).stat().st_mode
        yield temporary
        temporary.chmod(stat.S_IMODE(mode))  # safetensors makes a file that nobody else may read
        _synchronise(temporary, os.O_RDWR)
        os.replace(temporary, target)
        with suppress(OSError):  # some systems cannot open a folder
            _synchronise(target.parent, os.O_RDONLY)
    finally:
        temporary.unlink(missing_ok=True)


def _synchronise(path: Path, flags: int) -> None:
    """Wait until a file or folder is on disk."""
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: Path_) -> Contents:
    """Read a file and check that it is whole.

    Raises:
        CorruptCheckpointError: for a file that is truncated, damaged or not of this format.
        UnknownVersionError: for a format version that this release cannot read.
        OSError: if there is no such file, or it cannot be read.
    """
    with about(path), _opened(path) as file:
        description = _description(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        checksums = description["checksums"]
        if tensors.keys() != checksums.keys():
            differing = ", ".join(sorted(tensors.keys() ^ checksums.keys()))
            raise CorruptCheckpointError(
                f"damaged: the list of tensors is not its own, {differing}."
            )
        for name, tensor in tensors.items():
            if checksum(tensor) != checksums[name]:
                raise CorruptCheckpointError(
                    f"damaged: the tensor {name!r} is not what was written."
                )
        return Contents(description, tensors)


def read_shapes(path: Path_) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """The description, and the shapes of the tensors by name, without the tensors.

    Raises:
        CorruptCheckpointError: see :func:`read`.
        UnknownVersionError: see :func:`read`.
        OSError: see :func:`read`.
    """
    with about(path), _opened(path) as file:
        names = file.keys()
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
        return _description(file.metadata()), shapes


def is_torch_file(path: Path_) -> bool:
    """Whether a file begins as those of ``torch.save`` do."""
    with open(path, "rb") as file:
        start = file.read(9)
    # the first eight bytes of a safetensors file are a length, which can be anything
    return start[:2] in (b"PK", b"\x80\x02") and start[8:] != b"{"


@contextmanager
def _opened(path: Path_) -> Iterator[Any]:
    if is_torch_file(path):
        raise CorruptCheckpointError(
            "this is a file of torch.save. A checkpoint of the reference implementation is read "
            "by load_reference; anything else by torch.load."
        )
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except SafetensorError as error:
        raise CorruptCheckpointError(
            f"truncated or damaged: it is no whole safetensors file ({error})."
        ) from error


def _description(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    text = (metadata or {}).get(DESCRIPTION)
    if text is None:
        raise CorruptCheckpointError("it was not written by pyro_resflow.checkpoints.save.")
    try:
        description = json.loads(text)
        version = description["version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptCheckpointError(
            f"damaged: its description is no JSON of ours ({error})."
        ) from error
    if version not in range(1, VERSION + 1):
        raise UnknownVersionError(
            f"format version {version!r}; this release of pyro_resflow reads up to {VERSION}. "
            "Update pyro_resflow."
        )
    if (metadata or {}).get(CHECKSUM) != str(zlib.crc32(text.encode())):
        raise CorruptCheckpointError("damaged: its description is not what was written.")
    for part, kind in PARTS.items():
        if not isinstance(description.get(part), kind):
            raise CorruptCheckpointError(f"its description has no {part!r}.")
    return description


def checksum(tensor: Tensor) -> int:
    """A CRC-32 of a tensor on the CPU: of its type, its shape and its values."""
    start = zlib.crc32(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    values: Any = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return zlib.crc32(values, start)


@contextmanager
def about(path: Path_) -> Iterator[None]:
    """Errors of checkpoints raised within name the file."""
    try:
        yield
    except CheckpointError as error:
        message = f"{os.fspath(path)}: {error}"
        raise type(error)(message) from error.__cause__
