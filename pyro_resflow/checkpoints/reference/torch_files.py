"""Read ``torch.save`` files: zip archives, and the format before torch 1.6."""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from typing import Any, BinaryIO, NamedTuple, Protocol

from torch import Tensor

from ..errors import CheckpointError, CorruptCheckpointError, LimitError
from ..layout import tensor_of
from ..limits import Limits
from ..opening import size_of
from ..texts import printable, quoted
from .records import Storage, StoredTensor, within
from .unpickling import RestrictedUnpickler

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001

_READINGS = 2
"""Bytes that may be read, as a multiple of the file's size: tensors do not share storages."""


class Memory(Protocol):
    """Gives access to the values of a file's tensors."""

    def read(self, storage: Storage) -> bytes:
        """The bytes of a storage."""


class _Parts(NamedTuple):
    content: Any
    memory: Memory
    has_checksums: bool


class TorchFile:
    """A ``torch.save`` file, whose tensors are read on demand.

    Args:
        file: open for reading.
        limits: limits on the file's contents.

    Attributes:
        content: the saved object, with tensors replaced by records and objects by stand-ins.
        has_checksums: whether damage to its values is detected; the format before torch 1.6 has
            no checksums.

    Raises:
        UnsafePickleError: if the pickle names anything that does not belong in such a file.
        LimitError: for a pickle that exceeds the limits.
        CorruptCheckpointError: if it is truncated, damaged or not such a file.
    """

    def __init__(self, file: BinaryIO, limits: Limits | None = None) -> None:
        with _errors_are_damage():
            file.seek(0)
            read = _read_zip if file.read(4) == b"PK\x03\x04" else _read_legacy
            file.seek(0)
            parts = read(file, limits or Limits())
        self.content = parts.content
        self.has_checksums = parts.has_checksums
        self._memory = parts.memory
        self._left = _READINGS * size_of(file)

    def tensor(self, record: StoredTensor) -> Tensor:
        """A tensor, on the CPU.

        Raises:
            CorruptCheckpointError: if the file does not contain all of it.
        """
        storage, offset, shape, stride = within(record)
        self._left -= _bytes_of(storage)
        if self._left < 0:
            raise CorruptCheckpointError("its tensors share their memory, which is not supported.")
        with _errors_are_damage():
            values = tensor_of(bytearray(self._memory.read(storage)), storage.dtype)
            return values.as_strided(shape, stride, offset)


@contextmanager
def _errors_are_damage() -> Iterator[None]:
    """Report unforeseen errors while reading as damage."""
    try:
        yield
    except (CheckpointError, OSError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {printable(str(error))}"
        raise CorruptCheckpointError(
            f"truncated, damaged or not a torch.save file ({reason}). Read files of "
            "pyro_resflow.checkpoints.save with load."
        ) from error


class _ZipMemory:
    """The storages of a zip archive, one entry each."""

    def __init__(self, archive: zipfile.ZipFile, size: int, folder: str) -> None:
        self.archive = archive
        self.size = size
        self.folder = folder

    def read(self, storage: Storage) -> bytes:
        return self.archive.read(self.entry(storage))

    def entry(self, storage: Storage) -> zipfile.ZipInfo:
        """The archive entry of a storage, checked to be complete."""
        entry = _entry(self.archive, self.size, f"{self.folder}data/{storage.key}")
        if entry.file_size != _bytes_of(storage):
            raise CorruptCheckpointError(
                f"{printable(entry.filename)}: expected {_bytes_of(storage)} bytes, got "
                f"{entry.file_size}."
            )
        return entry


def _read_zip(file: BinaryIO, limits: Limits) -> _Parts:
    archive, size = zipfile.ZipFile(file), size_of(file)
    names = archive.namelist()
    pickles = [name for name in names if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CorruptCheckpointError("not a torch.save file: it has no data.pkl.")
    folder = pickles[0].removesuffix("data.pkl")
    order = f"{folder}byteorder"
    if order in names and archive.read(_entry(archive, size, order)) != b"little":
        raise CorruptCheckpointError("it was written on a big-endian machine: not supported.")
    entry = _entry(archive, size, pickles[0])
    if entry.file_size > limits.header:
        raise LimitError(
            f"its pickle has {entry.file_size:,} bytes; limits: header={limits.header:,}."
        )
    # read all of it, because zipfile verifies the checksum only at the end
    unpickler = RestrictedUnpickler(BytesIO(archive.read(entry)), limits)
    content = unpickler.load()
    memory = _ZipMemory(archive, size, folder)
    for storage in unpickler.storages.values():
        memory.entry(storage)
    _check_total(unpickler.storages, size)
    return _Parts(content, memory, has_checksums=True)


def _entry(archive: zipfile.ZipFile, size: int, name: str) -> zipfile.ZipInfo:
    """A complete, uncompressed entry. A compressed one could be larger than memory."""
    try:
        entry = archive.getinfo(name)
    except KeyError as error:
        raise CorruptCheckpointError(f"truncated: it has no {quoted(name)}.") from error
    if entry.compress_type != zipfile.ZIP_STORED:
        raise CorruptCheckpointError(
            f"{printable(name)} in it is compressed, which torch.save never does."
        )
    if entry.file_size != entry.compress_size or entry.header_offset + entry.file_size > size:
        raise CorruptCheckpointError(f"truncated: {printable(name)} is incomplete.")
    return entry


class _LegacyMemory:
    """The storages at the end of a file, one after another."""

    def __init__(self, file: BinaryIO, starts: Mapping[str, int]) -> None:
        self.file = file
        self.starts = starts

    def read(self, storage: Storage) -> bytes:
        self.file.seek(self.starts[storage.key])
        return self.file.read(_bytes_of(storage))


def _read_legacy(file: BinaryIO, limits: Limits) -> _Parts:
    for expected in (_LEGACY_MAGIC, _LEGACY_PROTOCOL):
        found = RestrictedUnpickler(file, limits).load()
        if type(found) is not int or found != expected:
            raise CorruptCheckpointError("not a torch.save file that can be read.")
    system = RestrictedUnpickler(file, limits).load()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CorruptCheckpointError("it was written on a big-endian machine: not supported.")
    unpickler = RestrictedUnpickler(file, limits)
    content = unpickler.load()
    starts = {}
    for key in RestrictedUnpickler(file, limits).load():
        storage = unpickler.storages.get(key) if isinstance(key, str) else None
        if storage is None:
            raise CorruptCheckpointError(f"no tensor uses its storage {quoted(key)}.")
        (size,) = struct.unpack("<q", file.read(8))
        if size != storage.size:
            raise CorruptCheckpointError(
                f"storage {quoted(key)}: expected {storage.size} entries, got {size}."
            )
        starts[key] = file.tell()
        file.seek(_bytes_of(storage), os.SEEK_CUR)
    if file.tell() > size_of(file) or starts.keys() != unpickler.storages.keys():
        raise CorruptCheckpointError("truncated: its last tensors are missing.")
    return _Parts(content, _LegacyMemory(file, starts), has_checksums=False)


def _check_total(storages: Mapping[str, Storage], size: int) -> None:
    """Raise if the storages have more bytes than the file, which means that they overlap."""
    if sum(map(_bytes_of, storages.values())) > size:
        raise CorruptCheckpointError("damaged: its storages overlap.")


def _bytes_of(storage: Storage) -> int:
    return storage.size * storage.dtype.itemsize
